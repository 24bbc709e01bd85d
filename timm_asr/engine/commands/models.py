"""List the models of this package, with parameters and multiply-accumulates."""

from collections.abc import Sequence

from ...errors import BadInput
from ..options import Option, group, parse, switch, value

OPTIONS: list[Option] = group(
    'Models',
    value('pattern', str, '*', "part of a name, or a shell pattern: dia, 'resnet50*asr*'; all if unset", nargs='?',
          metavar='PATTERN'),
    switch('--names', 'the names alone, which is quicker'),
)


def main(argv: Sequence[str], prog: str = 'timm-asr models') -> int:
    """Run the command; returns the exit status. ``BadInput``: no name matches."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    from fnmatch import filter as matching

    from ...models.counts import model_rows
    from ...models.registry import list_variants
    pattern = args.pattern if any(c in args.pattern for c in '*?[') else f'*{args.pattern}*'
    found = matching([variant.name for variant in list_variants()], pattern)
    if not found:
        raise BadInput(f"no model of this package matches '{args.pattern}'; `{prog} --names` lists all")
    if args.names:
        print(*found, sep='\n')
        return 0
    width = max(map(len, found))
    print(f'{"name":<{width}}  {"input":>9}  {"parameters":>11}  {"folded":>11}  {"MACs":>9}')
    for row in model_rows(pattern):
        print(f'{row["name"]:<{width}}  {row["input"]:>9}  {row["parameters"]:>11,}  {row["folded"]:>11,}  '
              f'{row["macs"] / 1e6:>7,.0f} M', flush=True)
    return 0
