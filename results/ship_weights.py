"""Put the weights of a finished run of train.py into the package, with where they come from beside them.

    python results/ship_weights.py output/train/RUN --tag cifar10

writes timm_asr/weights/<model>.<tag>.safetensors and .json from the run's best checkpoint (--checkpoint last.pth.tar
takes another), its metrics.json and its summary.csv. Nothing of the machine is written: of a path the last part stays.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.models import is_model

import timm_asr  # noqa: F401 - registers the models
from timm_asr.checkpoints.open import open_source
from timm_asr.checkpoints.provenance import file_sha256, public_arguments, versions
from timm_asr.engine.summary import read_summary
from timm_asr.errors import BadInput, run_main
from timm_asr.export.save import state_of
from timm_asr.models.pretrained import FOLDER

_FACTS = ('model', 'package_version', 'timm_version', 'torch_version', 'git_commit', 'recipe', 'seed', 'dataset',
          'epoch', 'weights')


def _read_metrics(run: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    try:
        metrics = json.loads((run / 'metrics.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        raise BadInput(f'{run} has no metrics.json: the run has not come to its end') from None
    for key in ('epoch', 'weights'):
        if metrics.get(key) != facts.get(key):
            raise BadInput(f'{run}/metrics.json is of {key} {metrics.get(key)}, the checkpoint of {key} '
                           f'{facts.get(key)}: name the checkpoint that was measured')
    return metrics


def _read_log(run: Path) -> list[dict[str, float]]:
    rows = read_summary(run / 'summary.csv')
    if not rows:
        raise BadInput(f'{run} has no summary.csv, the log of the run')
    return [{key: int(value) if key == 'epoch' else round(float(value), 6) for key, value in row.items() if value}
            for row in rows]


def ship(run: Path, tag: str, checkpoint: str = 'model_best.pth.tar', use_ema: bool = False, folder: Path = FOLDER,
         labels: Sequence[str] | None = None, git_commit: str | None = None) -> Path:
    """Write the pair of files for a run, and return the path of the weights.

    Args:
        run: Its folder.
        tag: What the weights were trained on, the part after the dot of ``resnet20.cifar10``.
        checkpoint: The file in the folder.
        use_ema: Take the averaged weights.
        folder: Where the pair goes.
        labels: A name for each class.
        git_commit: What the run was made from, where the checkpoint does not say it.

    Raises:
        BadInput: The folder is not that of a finished run, or the model is not one that this package registers.
    """
    path = run / checkpoint
    if not path.is_file():
        raise BadInput(f'{run} is not the folder of a run: it has no {checkpoint}')
    source = open_source(path, use_ema)
    facts, name = source.facts, source.facts.get('model')
    if not name or not is_model(name) or not source.args:
        raise BadInput(f'{path} does not say which model it is and how it was trained')
    if not tag.isidentifier():
        raise BadInput(f'--tag {tag!r} cannot be part of a name; use letters, digits and _, as in cifar10')
    extra = {**(source.args.get('model_kwargs') or {}),
             **{key: source.args[key] for key in ('asr', 'gp', 'bn_eps', 'img_size') if source.args.get(key)}}
    if extra:
        raise BadInput(f'{path} was built with {", ".join(extra)}, which the name {name}.{tag} does not say')
    if labels and len(labels) != source.model.num_classes:
        raise BadInput(f'--label-names has {len(labels)} names for {source.model.num_classes} classes')
    state = {key: value.float() if value.is_floating_point() else value
             for key, value in state_of(source.model).items()}
    log, metrics = _read_log(run), _read_metrics(run, facts)
    metrics = {key: value for key, value in metrics.items()
               if key.startswith(('top', 'images', 'logit', 'parameters')) and not key.startswith('images_per_second')}
    cfg = {**(source.data_config or {}), 'num_classes': source.model.num_classes}
    if labels:
        cfg['label_names'] = list(labels)

    weights = folder / f'{name}.{tag}.safetensors'
    weights.write_bytes(save(state, metadata={'format': 'pt'}))
    content = {
        'architecture': name, 'tag': tag, 'sha256': file_sha256(weights), 'bytes': weights.stat().st_size,
        'pretrained_cfg': cfg, 'metrics': metrics,
        'provenance': {
            **{key: facts.get(key) for key in _FACTS}, 'git_commit': facts.get('git_commit') or git_commit,
            'shipped_with': versions(), 'arguments': public_arguments(source.args)},
        'log': log}
    weights.with_suffix('.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with this command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('run', type=Path, help='folder of a finished run')
    parser.add_argument('--tag', required=True, help='the part after the dot of the name: cifar10')
    parser.add_argument('--checkpoint', default='model_best.pth.tar', help='file in the folder (%(default)s)')
    parser.add_argument('--use-ema', action='store_true', help='take the averaged weights')
    parser.add_argument('--label-names', type=lambda text: text.split(','), help='names of the classes, with commas')
    parser.add_argument('--git-commit', help='what the run was made from, where the checkpoint does not say it')
    args = parser.parse_args(argv)
    weights = ship(args.run, args.tag, args.checkpoint, args.use_ema, labels=args.label_names,
                   git_commit=args.git_commit)
    content = json.loads(weights.with_suffix('.json').read_text(encoding='utf-8'))
    print(f'{weights.name}: {content["bytes"]:,} bytes, top-1 {content["metrics"].get("top1")} %, '
          f'SHA-256 {content["sha256"][:12]}...')
    return 0


if __name__ == '__main__':
    sys.exit(run_main(main, 'ship_weights'))
