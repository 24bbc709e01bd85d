"""Where weights come from: the section ``timm_asr`` at the root of a written ``config.json``.

timm refuses unknown keys inside ``pretrained_cfg`` and keeps its hands off those at the root. What goes in is chosen by
name: options of recipe, schedule, augmentation and model. Nothing in it names the machine.
"""

import hashlib
import re
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from timm.models import get_pretrained_cfg

from ..version import __version__
from .find import HUB_PREFIXES
from .names import KEY

_OPTIONS = """
dataset train_split val_split train_images holdout split_seed model asr last_norm_init pretrained num_classes gp
img_size in_chans input_size crop_pct mean std interpolation batch_size validation_batch_size grad_accum_steps
model_kwargs head_init_scale head_init_bias amp amp_dtype model_dtype opt opt_eps opt_betas momentum weight_decay
clip_grad clip_mode layer_decay layer_decay_min_scale layer_decay_no_opt_scale decay_all site_lr psi_lr opt_kwargs
sched sched_on_updates lr lr_base lr_base_size lr_base_scale lr_noise lr_noise_pct lr_noise_std lr_cycle_mul
lr_cycle_decay lr_cycle_limit lr_k_decay warmup_lr min_lr epochs epoch_repeats decay_milestones decay_epochs
warmup_epochs warmup_prefix cooldown_epochs patience_epochs decay_rate no_aug train_crop_mode scale ratio hflip vflip
color_jitter color_jitter_prob grayscale_prob gaussian_blur_prob aa aug_repeats aug_splits jsd_loss bce_loss bce_sum
bce_target_thresh bce_pos_weight reprob remode recount resplit mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob
mixup_mode mixup_off_epoch smoothing train_interpolation drop drop_connect drop_path drop_block bn_momentum bn_eps
sync_bn bn_noise dist_bn split_bn model_ema model_ema_decay model_ema_warmup seed eval_metric train_img_sizes
train_batch_sizes train_size_probs train_size_schedule train_size_schedule_spread train_size_random_mix
variable_batch_loss_scale train_batches_per_epoch
"""
#: The options of a run that may be published; whatever is not in this list stays on the machine.
PUBLIC_OPTIONS = frozenset(_OPTIONS.split())
# A value that is text: a word, or a name on the Hub. Most tokens are longer than a word.
_WORD = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.,*+-]{0,31}')
_MODEL = re.compile(r'(hf[-_]hub:[\w.-]+/)?[A-Za-z0-9][\w.-]{0,95}')
_DATASET = re.compile(r'((torch|tfds|hfds|hfids)/)?([A-Za-z0-9][\w.-]{0,31}/)?[A-Za-z0-9][\w.-]{0,31}')


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` behind it if files differ; None outside of one."""
    try:
        # The first asks whether this is the package's own checkout, not another's with an environment inside.
        for words in (['ls-files', '--error-unmatch', '__init__.py'],
                      ['describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*']):
            said = subprocess.run(['git', *words], cwd=Path(__file__).resolve().parent, capture_output=True, text=True,
                                  check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return said


def versions() -> dict[str, str]:
    """Versions of this package, timm and PyTorch."""
    return {'package_version': __version__, 'timm_version': timm.__version__, 'torch_version': str(torch.__version__)}


def base_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r'[/\\:]', path.rstrip('/\\'))[-1]


def public_name(text: str, pattern: re.Pattern[str] = _MODEL) -> str | None:
    """The name of a model, or another text, if it fits a pattern whole, else its last part if that does, else None."""
    return next((part for part in (text, base_name(text)) if pattern.fullmatch(part)), None)


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        found = {key: _public(v) for key, v in value.items() if isinstance(key, str) and _WORD.fullmatch(key)}
        return {key: v for key, v in found.items() if v is not None}
    if isinstance(value, list | tuple):  # the whole one, or nothing of it
        found = [_public(v) for v in value]
        return None if any(new is None is not old for new, old in zip(found, value, strict=True)) else found
    if isinstance(value, bool | int | float | None):
        return value
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def public_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that may be published, those that are set: by the list of names, and then by their values.

    Numbers, switches and words of at most 32 letters pass; of models and data sets that are paths, the last part.
    """
    patterns = {'model': _MODEL, 'dataset': _DATASET}
    found = {name: public_name(str(args[name] or ''), patterns[name]) if name in patterns else _public(args[name])
             for name in sorted(PUBLIC_OPTIONS & set(args))}
    return {name: value for name, value in found.items()
            if value is not None and value is not False and value not in ('', [], {})}


def as_yaml(options: Mapping[str, Any]) -> str:
    """Options one a line, lists in brackets."""
    return ''.join(
        f'{name}: {yaml.safe_dump(value, default_flow_style=True, width=10_000)}' if isinstance(value, list | dict)
        else yaml.safe_dump({name: value}, default_flow_style=False, width=10_000) for name, value in options.items())


def public_yaml(args: Mapping[str, Any]) -> bytes:
    """The content of a published ``args.yaml``."""
    return as_yaml(public_arguments(args)).encode()


def dataset_name(args: Mapping[str, Any]) -> str | None:
    """The data set of a run: its name, or that of the folder of images."""
    return public_name(args.get('dataset') or str(args.get('data_dir') or args.get('data') or ''), _DATASET)


def base_model_of(name: str, pretrained: bool) -> str | None:
    """The repository on the Hub whose weights a model started from, by the name it was made by; None if unknown."""
    if name.startswith(HUB_PREFIXES):
        return name.partition(':')[2].partition('@')[0]
    cfg = get_pretrained_cfg(name, allow_unregistered=True) if pretrained and name else None
    return (cfg.hf_hub_id or None) if cfg is not None else None


def checkpoint_facts(path: Path, content: Mapping[str, Any], use_ema: bool) -> dict[str, Any]:
    """The provenance of a checkpoint, whose ``content`` :func:`read_checkpoint` returned."""
    args = content.get('args') or {}
    metric = content.get('metric')
    facts: dict[str, Any] = {
        **(content.get('made_by') or {}), 'model': content.get('arch') or args.get('model'),
        'recipe': public_name(base_name(args['config']).rsplit('.', 1)[0], _WORD) if args.get('config') else None,
        'arguments': public_arguments(args) or None, 'seed': args.get('seed'), 'dataset': dataset_name(args),
        'base_model': base_model_of(str(args.get('model') or ''), bool(args.get('pretrained')) and not (
            args.get('pretrained_path') or args.get('initial_checkpoint'))),
        'weights': 'ema' if use_ema else 'raw', 'epoch': content.get('epoch'),
        'source': {'file': path.name, 'sha256': file_sha256(path)}}
    if isinstance(metric, int | float) and args.get('eval_metric') in ('top1', 'top5'):
        facts['metrics'] = {'before': {args['eval_metric']: metric}, 'after': None}
    return {key: value for key, value in facts.items() if value is not None}


def provenance_of(facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The whole section, in one order and with every key, from facts and the content of a ``metrics.json``."""
    section: dict[str, Any] = {
        'format': 2, 'form': None, 'needs': [], 'model': None, 'asr': None, 'package': KEY, **versions(),
        'git_commit': None, 'recipe': None, 'arguments': {}, 'seed': None, 'dataset': None, 'base_model': None,
        'weights': None, 'epoch': None, 'metrics': None, 'source': None, 'weights_sha256': None}
    section |= {key: value for key, value in facts.items() if value is not None}
    section['arguments'] = public_arguments(section['arguments'] or {})  # of an older folder by today's list
    if metrics:
        before, after = ({key: metrics[key + end] for key in keys if metrics.get(key + end) is not None} or None
                         for keys, end in ((('top1', 'top5', 'loss'), ''), (('top1', 'top5'), '_folded')))
        section['metrics'] = {'before': before, 'after': after, **{
            key: metrics[key] for key in ('images', 'logit_difference_relative') if metrics.get(key) is not None}}
    return section | {'exported_with': versions()}
