"""Show where ASR goes in a model: the layers that its vectors scale."""

from collections.abc import Sequence

from ...errors import BadInput
from ..flags import pick
from ..options import Option, group, parse, value

OPTIONS: list[Option] = [
    *group(
        'Model',
        value('name', str, None, 'any name that timm takes, a checkpoint, a folder of weights or hf-hub:OWNER/NAME'),
        value('--sites', str, None, "show the layers of these names or patterns instead: 'layer4.*.bn3'", nargs='+',
              metavar='PATTERN'),
    ),
    *pick('model', help='name of the model, where a checkpoint does not say it'), *pick('model-kwargs'),
]


def main(argv: Sequence[str], prog: str = 'timm-asr sites') -> int:
    """Run the command; returns the exit status. ``BadInput``: there is no such model, or no place for ASR in it."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    from ...asr.scaled import out_channels
    from ...asr.sites import known_sites, match_sites
    from ...asr.wrapper import ASR
    from ...checkpoints.find import check_model_name, source_of
    from ...checkpoints.open import open_source
    from ...models.counts import weightless
    try:
        if source_of(args.name) == 'registry':
            check_model_name(args.name)
            model = weightless(args.name, **args.model_kwargs)
        else:
            model = open_source(args.name, name=args.model, pretrained=False, model_kwargs=args.model_kwargs).model
        sites = match_sites(model, args.sites) if args.sites else known_sites(model)
        layers = {site: layer.layer if isinstance(layer, ASR) else layer
                  for site in sites for layer in [model.get_submodule(site)]}
        rows = [(site, type(layer).__name__, out_channels(layer)) for site, layer in layers.items()]
    except (TypeError, ValueError, OSError) as error:
        raise BadInput(str(error).strip().rstrip('.')) from None
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for site, kind, channels in rows:
        print(f'{site:<{widths[0]}}  {kind:<{widths[1]}}  {channels:>6} channels')
    print(f'{len(rows)} {"site" if len(rows) == 1 else "sites"} in {args.name}.')
    return 0
