"""Put the weights of a finished run of train.py into the package, with where they come from beside them.

    python results/ship_weights.py output/train/RUN --tag cifar10

writes timm_asr/weights/<model>.<tag>.safetensors and .json from the run's last checkpoint and its summary.csv. The
weights are in float16 where that changes no prediction on the images that the run measured on, else in float32
(--dataset and --data-dir say where those images lie now). Of a path the last part is written.
"""

import argparse
import copy
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.models import is_model
from torch import nn

import timm_asr  # noqa: F401 - registers the models
from timm_asr.checkpoints.open import open_source
from timm_asr.checkpoints.provenance import file_sha256, public_arguments, versions
from timm_asr.checkpoints.source import Source
from timm_asr.engine.flags import DATA, IMAGE
from timm_asr.engine.forms import compare_forms
from timm_asr.engine.inputs import data_config_of, open_data
from timm_asr.engine.loaders import make_eval_loader
from timm_asr.engine.summary import read_summary
from timm_asr.errors import BadInput, run_main
from timm_asr.export.save import state_of
from timm_asr.models.pretrained import FOLDER

_FACTS = ('model', 'package_version', 'timm_version', 'torch_version', 'git_commit', 'recipe', 'seed', 'dataset',
          'epoch', 'weights')


def _test_images(source: Source, dataset: str | None, data_dir: str | None) -> Any:
    """A loader of the images that the run measured on."""
    args = argparse.Namespace(**{option.key: option.start for option in (*DATA, *IMAGE)})
    args.dataset, args.data_dir = (source.args.get(key, '') if given is None else given
                                   for key, given in (('dataset', dataset), ('data_dir', data_dir)))
    args.split, args.workers = source.args.get('val_split') or args.split, 0
    config = data_config_of(args, source.model, source.data_config)
    return make_eval_loader(args, config, open_data(args, config, source.model.num_classes), torch.device('cpu'), None)


def _as_half(model: nn.Module, loader: Iterable, tries: int = 2000) -> nn.Module | None:
    """The network with its weights in float16, rounded so that no prediction on the images changes.

    None if each try changes one. The first rounds each weight to the nearest number, the others take the other
    neighbour of some that lie near the middle.
    """
    def logits_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([network(part) for part in images.split(500)])

    images = torch.cat([images for images, _ in loader])
    logits = logits_of(model, images)
    first, second = logits.topk(2).values.unbind(1)
    close = (first - second).argsort()[:200]
    for seed in range(tries):
        rounded, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        for t in rounded.state_dict().values():
            if t.is_floating_point():
                moved = torch.rand(t.shape, generator=generator) - 0.5 if seed else torch.zeros_like(t)
                t.copy_((t + torch.ldexp(moved, t.frexp().exponent - 12)).half())  # by a quarter of a step at most
        if all(torch.equal(logits_of(rounded, images[some]).argmax(1), logits[some].argmax(1))
               for some in (close[:20], close, slice(None))):  # those that are close first, since all take long
            return rounded
    return None


def _read_log(run: Path) -> list[dict[str, float]]:
    rows = read_summary(run / 'summary.csv')
    if not rows:
        raise BadInput(f'{run} has no summary.csv, the log of the run')
    return [{key: int(value) if key == 'epoch' else round(float(value), 6) for key, value in row.items() if value}
            for row in rows]


def ship(run: Path, tag: str, dataset: str | None = None, data_dir: str | None = None, folder: Path = FOLDER,
         labels: Sequence[str] | None = None, git_commit: str | None = None, recipe: str | None = None) -> Path:
    """Write the pair of files for a run, and return the path of the weights.

    Args:
        run: Its folder.
        tag: What the weights were trained on, the part after the dot of ``resnet20.cifar10``.
        dataset: The images to measure on, where the run's own name for them does not find them.
        data_dir: The folder that they lie in, likewise.
        folder: Where the pair goes.
        labels: A name for each class.
        git_commit: What the run was made from, where the checkpoint does not say it.
        recipe: The plan of an experiment that the run is of.

    Raises:
        BadInput: The folder is not that of a finished run, or the model is not one that this package registers.
    """
    path = run / 'last.pth.tar'
    if not path.is_file():
        raise BadInput(f'{run} is not the folder of a run: it has no {path.name}')
    source = open_source(path)
    facts, name, args = source.facts, source.facts.get('model'), source.args
    if not name or not is_model(name) or not args:
        raise BadInput(f'{path} does not say which model it is and how it was trained')
    if not tag.isidentifier():
        raise BadInput(f'--tag {tag!r} cannot be part of a name; use letters, digits and _, as in cifar10')
    extra = {**(args.get('model_kwargs') or {}),
             **{key: args[key] for key in ('asr', 'gp', 'bn_eps', 'img_size') if args.get(key)}}
    if extra:
        raise BadInput(f'{path} was built with {", ".join(extra)}, which the name {name}.{tag} does not say')
    if labels and len(labels) != source.model.num_classes:
        raise BadInput(f'--label-names has {len(labels)} names for {source.model.num_classes} classes')
    log = _read_log(run)
    if not facts['epoch'] == log[-1]['epoch'] == args['epochs'] - 1:
        raise BadInput(f'{run} has not come to its end: {path.name} is of epoch {facts["epoch"]}, counted from 0, '
                       f'of {args["epochs"]}')
    loader = _test_images(source, dataset, data_dir)
    trained = source.model.float().eval().to(memory_format=torch.channels_last)
    half = _as_half(trained, loader)
    model = trained if half is None else half
    metrics, _ = compare_forms(model, facts, loader, torch.device('cpu'), str(path))
    state = {key: value.half() if half is not None and value.is_floating_point() else value
             for key, value in state_of(model).items()}
    cfg = {**(source.data_config or {}), 'num_classes': model.num_classes}
    if labels:
        cfg['label_names'] = list(labels)

    weights = folder / f'{name}.{tag}.safetensors'
    weights.write_bytes(save(state, metadata={'format': 'pt'}))
    content = {
        'architecture': name, 'tag': tag, 'sha256': file_sha256(weights), 'bytes': weights.stat().st_size,
        'pretrained_cfg': cfg, 'metrics': {
            key: value for key, value in metrics.items() if key.startswith(('top', 'images', 'logit', 'parameters'))},
        'provenance': {
            **{key: facts.get(key) for key in _FACTS}, 'recipe': recipe or facts['recipe'],
            'git_commit': facts.get('git_commit') or git_commit,
            'shipped_with': versions(), 'arguments': public_arguments(args)},
        'log': log}
    weights.with_suffix('.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with this command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('run', type=Path, help='folder of a finished run')
    parser.add_argument('--tag', required=True, help='the part after the dot of the name: cifar10')
    parser.add_argument('--dataset', help='the images to measure on, as --dataset of train.py (the run\'s own)')
    parser.add_argument('--data-dir', help='the folder of the images (the run\'s own)')
    parser.add_argument('--label-names', type=lambda text: text.split(','), help='names of the classes, with commas')
    parser.add_argument('--git-commit', help='what the run was made from, where the checkpoint does not say it')
    parser.add_argument('--recipe', help='the plan of an experiment that the run is of')
    args = parser.parse_args(argv)
    weights = ship(args.run, args.tag, args.dataset, args.data_dir, labels=args.label_names,
                   git_commit=args.git_commit, recipe=args.recipe)
    content = json.loads(weights.with_suffix('.json').read_text(encoding='utf-8'))
    print(f'{weights.name}: {content["bytes"]:,} bytes, top-1 {content["metrics"].get("top1")} %, '
          f'SHA-256 {content["sha256"][:12]}...')
    return 0


if __name__ == '__main__':
    sys.exit(run_main(main, 'ship_weights'))
