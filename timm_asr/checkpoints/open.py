"""What the user names for export, opened: a training checkpoint, or a folder that was written before."""

import argparse
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..engine.build import data_config_of
from ..engine.checkpoint import BEST
from ..engine.commands.train import OPTIONS as TRAIN_OPTIONS
from ..errors import BadInput, Stopped
from ..export.contents import read_config
from ..export.place import CONFIG, METRICS, TRAINABLE, WEIGHTS
from ..export.provenance import chosen_arguments, dataset_name, file_sha256, public, public_arguments, read_provenance
from ..export.trainable import create_trainable
from .load_model import check_folder, is_folder_of_weights, load_model, read_checkpoint, source_of
from .source import Source, name_of

_DATA_KEYS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def open_source(what: str | os.PathLike, use_ema: bool = False, name: str = '', **options: Any) -> Source:
    """Load what is to be exported, with all that is known about it.

    Args:
        what: The path of a training checkpoint (of this package or of timm's ``train.py``) or of a folder that
            ``save_fused`` wrote, or the name of weights that exist (``hf-hub:...``, a registry name).
        use_ema: The averaged weights of a checkpoint.
        name: Of the model, where a checkpoint does not say it.
        options: More keywords of :func:`load_model`.

    Raises:
        BadInput: One sentence for anything that cannot be loaded.
    """
    path = str(what)
    if is_folder_of_weights(path.removeprefix('local-dir:')):
        return _open_folder(Path(path.removeprefix('local-dir:')), use_ema)
    if Path(path).is_dir():
        best = Path(path) / BEST
        raise BadInput(f'{path} is the folder of a run, not a checkpoint: name {best}' if best.is_file() else
                       f'{path} is a folder without config.json: name a checkpoint, or a folder that was exported')
    if source_of(path) in ('hub', 'registry'):
        if use_ema:
            raise BadInput(f'{path} is the name of published weights, which have no averaged ones beside them')
        model = load_model(path, pretrained=True, **options)
        facts = {'model': name_of(model), 'source': {'file': public(path), 'sha256': None}}
        return Source(model, facts, label_names=label_names_of(model, model.pretrained_cfg))  # type: ignore[arg-type]
    return _open_checkpoint(Path(path), use_ema, name, options)


def _open_folder(folder: Path, use_ema: bool) -> Source:
    if use_ema:
        raise BadInput(f'{folder} is an exported folder, which has no averaged weights beside the others')
    check_folder(folder, None)
    facts = read_provenance(folder)
    attached = facts.get('form') == 'trainable' and facts.get('asr')
    model = create_trainable(folder) if attached else load_model(str(folder))
    if not facts:
        weights = folder / WEIGHTS
        facts = {'model': name_of(model)}
        if weights.is_file():
            facts['source'] = {'file': weights.name, 'sha256': file_sha256(weights)}
    facts = {key: value for key, value in facts.items() if key not in ('weights_sha256', 'created', 'exported_with')}
    unfused = folder / TRAINABLE
    load_unfused = partial(create_trainable, unfused) if (unfused / CONFIG).is_file() else None
    return Source(
        model, facts, label_names=label_names_of(model, read_config(folder)), metrics=_read_metrics(folder),
        files=_files_beside(folder, {}, True), unfused=load_unfused)


def _files_beside(folder: Path, args: Mapping[str, Any], is_best: bool) -> dict[str, bytes]:
    """Plots, curve and options of a run; the plot of the attention is that of its best checkpoint."""
    names = ('summary.csv', 'curve.png', *(('attention.png',) if is_best else ()))
    try:
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        if not args and (folder / 'args.yaml').is_file():
            args = yaml.safe_load((folder / 'args.yaml').read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if isinstance(args, Mapping) and args:
        files['args.yaml'] = yaml.safe_dump(public_arguments(args), sort_keys=True, width=100).encode()
    return files


def _read_metrics(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / METRICS).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _open_checkpoint(path: Path, use_ema: bool, name: str, options: Mapping[str, Any]) -> Source:
    digest = file_sha256(path) if path.is_file() else None
    content = read_checkpoint(path)
    has_ema = any(key in content for key in ('state_dict_ema', 'model_ema'))
    if use_ema and not has_ema:
        raise BadInput(f'{path} has no averaged weights; leave out --use-ema (use_ema) to export those it has')
    model = load_model(name, path, use_ema=use_ema, **options)
    facts = checkpoint_facts(path, content, use_ema)
    if facts['source']['sha256'] != digest:
        raise Stopped(f'{path} was replaced while it was read; open it again')
    facts.setdefault('model', name_of(model))
    facts['asr'] = getattr(model, 'asr_options', None)
    metrics = _read_metrics(path.parent)
    # A run folder has the figures of one checkpoint, the best.
    fits = metrics is not None and all(metrics.get(key) == facts.get(key) for key in ('model', 'epoch', 'weights'))
    args = arguments_of(content)
    return Source(model, facts, checkpoint_data_config(model, args) if args else None,
                  label_names_of(model, content), metrics if fits else None, args, has_ema=has_ema,
                  files=_files_beside(path.parent, args, fits or path.name == BEST))


def label_names_of(model: nn.Module, content: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes that a checkpoint or configuration holds, if they are those of the model."""
    names = content.get('label_names')
    return list(names) if isinstance(names, list | tuple) and len(names) == model.num_classes else None


def arguments_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint, of this engine or of timm's script, was trained with; empty if it does not say."""
    args = content.get('args')
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, dict) else {}


def checkpoint_facts(path: Path, content: Mapping[str, Any], use_ema: bool) -> dict[str, Any]:
    """The provenance of a checkpoint.

    Args:
        path: Of the file.
        content: Of the file, as :func:`read_checkpoint` returns it.
        use_ema: Whether its averaged weights are taken.
    """
    args = arguments_of(content)
    defaults = {option.key: option.start for option in TRAIN_OPTIONS}
    recipe = public(args.get('config') or None, is_path=True)
    metric = content.get('metric')
    facts: dict[str, Any] = {
        **(content.get('made_by') or {}),
        'model': content.get('arch') or args.get('model'),
        'recipe': recipe.rsplit('.', 1)[0] if recipe else None,
        'arguments': chosen_arguments(args, defaults) or None,
        'seed': args.get('seed'),
        'dataset': dataset_name(args),
        'weights': 'ema' if use_ema else 'raw',
        'epoch': content.get('epoch'),
        'source': {'file': path.name, 'sha256': file_sha256(path)},
    }
    if isinstance(metric, int | float) and args.get('eval_metric') in ('top1', 'top5'):
        facts['metrics'] = {'before': {args['eval_metric']: metric}, 'after': None}
    return {key: value for key, value in facts.items() if value is not None}


def checkpoint_data_config(model: nn.Module, args: Mapping[str, Any]) -> dict[str, Any]:
    """What the images of a training run went through: its options, and for the rest the model's own cfg."""
    known = {'input_size': None, 'in_chans': None, **args}
    known['in_chans'] = known['in_chans'] or getattr(model, 'in_chans', 3)
    config = data_config_of(model, argparse.Namespace(**known))
    return used_data_config(config)


def used_data_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What training and validation take of timm's data configuration: all but the way of cropping."""
    return {key: config[key] for key in _DATA_KEYS}
