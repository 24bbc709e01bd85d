"""What is to be exported: a live model, a training checkpoint, or a folder that was written before."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import unwrap_model
from torch import nn

from ..engine.errors import BadInput
from .place import METRICS, TRAINABLE
from .provenance import (
    chosen_arguments,
    dataset_name,
    file_sha256,
    git_commit,
    public,
    public_arguments,
    read_provenance,
)

_DATA_KEYS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')


@dataclass
class Source:
    """A model with what is known about it.

    Args:
        model: Unwrapped, its weights loaded, as it was trained.
        facts: Entries of the provenance.
        data_config: What its images went through, in timm's words; None where the model's own cfg says it.
        label_names: A name for each class, or None.
        metrics: The content of a ``metrics.json``, or None.
        args: All options of the training run, or none.
        beside: The folder that the checkpoint lies in.
        has_ema: Whether the checkpoint has averaged weights too.
        files: What lies beside it and may go along, by name: curves, the attention plot, the options.
    """

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)
    data_config: dict[str, Any] | None = None
    label_names: Sequence[str] | None = None
    metrics: dict[str, Any] | None = None
    args: dict[str, Any] = field(default_factory=dict)
    beside: Path | None = None
    has_ema: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


def name_of(model: nn.Module) -> str:
    """The registered name of a model, ``''`` if it has none that it could be saved by."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return cfg.get('architecture') or '' if hasattr(model, 'num_classes') else ''


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside averaging, DDP and compiled wrappers, whichever way they are nested."""
    inner = unwrap_model(model)
    return inner if inner is model else unwrap(inner)


def open_source(what: nn.Module | str | os.PathLike, use_ema: bool = False, name: str = '', **options: Any) -> Source:
    """Load what is to be exported.

    Args:
        what: A model; or the path of a training checkpoint, of a folder that ``save_fused`` wrote, or the name of
            weights that exist (``hf-hub:...``, a registry name with a pretrained tag).
        use_ema: The averaged weights of a checkpoint.
        name: Of the model, where a checkpoint does not say it.
        options: More keywords of :func:`timm_asr.engine.load_model.load_model`.

    Raises:
        BadInput: One sentence for anything that cannot be loaded.
    """
    if isinstance(what, nn.Module):
        model = unwrap(what)
        return Source(model, {'model': name_of(model), 'asr': getattr(model, 'asr_options', None),
                              'git_commit': git_commit()})
    # Here, since the engine imports this package.
    from ..engine.load_model import is_folder_of_weights, load_model, source_of
    path = str(what)
    if is_folder_of_weights(path.removeprefix('local-dir:')):
        return _open_folder(Path(path.removeprefix('local-dir:')), use_ema)
    if Path(path).is_dir():
        best = Path(path) / 'model_best.pth.tar'
        raise BadInput(f'{path} is the folder of a run, not a checkpoint: name {best}' if best.is_file() else
                       f'{path} is a folder without config.json: name a checkpoint, or a folder that was exported')
    if source_of(path) in ('hub', 'registry'):
        if use_ema:
            raise BadInput(f'{path} is the name of published weights, which have no averaged ones beside them')
        model = load_model(path, pretrained=True, **options)
        return Source(model, {'model': name_of(model), 'source': {'file': public(path), 'sha256': None}})
    model = load_model(name, path, use_ema=use_ema, **options)
    return _open_checkpoint(model, Path(path), use_ema)


def _open_folder(folder: Path, use_ema: bool) -> Source:
    from .trainable import create_trainable
    if use_ema:
        raise BadInput(f'{folder} is an exported folder, which has no averaged weights beside the others')
    facts = read_provenance(folder)
    model = create_trainable(folder)
    if not facts:
        weights = folder / 'model.safetensors'
        facts = {'model': name_of(model)}
        if weights.is_file():
            facts['source'] = {'file': weights.name, 'sha256': file_sha256(weights)}
    facts = {key: value for key, value in facts.items() if key not in ('weights_sha256', 'created', 'exported_with')}
    return Source(model, facts, metrics=_read_metrics(folder), beside=folder, files=_files_beside(folder, {}, True))


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


def _open_checkpoint(model: nn.Module, path: Path, use_ema: bool) -> Source:
    from ..engine.load_model import read_checkpoint
    content = read_checkpoint(path) if path.suffix != '.safetensors' else {}
    has_ema = any(key in content for key in ('state_dict_ema', 'model_ema'))
    if use_ema and not has_ema:
        raise BadInput(f'{path} has no averaged weights; leave out --use-ema (use_ema) to export those it has')
    facts = checkpoint_facts(path, content, use_ema)
    facts.setdefault('model', name_of(model))
    facts['asr'] = getattr(model, 'asr_options', None)
    metrics = _read_metrics(path.parent)
    # A run folder has the figures of one checkpoint, the best.
    fits = metrics is not None and all(metrics.get(key) == facts.get(key) for key in ('model', 'epoch', 'weights'))
    args = arguments_of(content)
    return Source(model, facts, checkpoint_data_config(model, args) if args else None,
                  label_names_of(model, content), metrics if fits else None, args, path.parent, has_ema,
                  _files_beside(path.parent, args, fits or path.name == 'model_best.pth.tar'))


def label_names_of(model: nn.Module, content: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes that a checkpoint remembers, if they are those of the model."""
    names = content.get('label_names')
    return names if isinstance(names, list) and len(names) == model.num_classes else None


def arguments_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint, of this engine or of timm's script, was trained with; empty if it does not say."""
    args = content.get('args')
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, dict) else {}


def checkpoint_facts(path: Path, content: Mapping[str, Any], use_ema: bool) -> dict[str, Any]:
    """The provenance of a checkpoint.

    Args:
        path: Of the file.
        content: Of the file, as :func:`timm_asr.engine.load_model.read_checkpoint` returns it.
        use_ema: Whether its averaged weights are taken.
    """
    from ..engine.train_options import TRAIN_OPTIONS
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
    from ..engine.build import data_config_of
    known = {'input_size': None, 'in_chans': None, **args}
    known['in_chans'] = known['in_chans'] or getattr(model, 'in_chans', 3)
    config = data_config_of(model, argparse.Namespace(**known))
    return used_data_config(config)


def used_data_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What training and validation take of timm's data configuration: all but the way of cropping."""
    return {key: config[key] for key in _DATA_KEYS}


def trainable_of(source: Source) -> nn.Module | None:
    """The unfused model: the source itself, or what lies beside it in an exported folder; None if there is none."""
    from ..layers import has_asr
    from .trainable import create_trainable
    if has_asr(source.model):
        return source.model
    if source.beside is not None and (source.beside / TRAINABLE / 'config.json').is_file():
        return create_trainable(source.beside / TRAINABLE)
    return None


def to_float32(model: nn.Module) -> nn.Module:
    """Float32 in place: what every loader makes of the weights, so that folding rounds once."""
    return model.to(device='cpu', dtype=torch.float32).eval()
