"""Where weights come from: the section ``timm_asr`` at the root of a written ``config.json``.

timm refuses unknown keys inside ``pretrained_cfg`` and keeps its hands off those at the root. Nothing in here names the
machine: of a path the last part is kept, and what looks like a secret is left out.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch

from ..version import __version__

KEY = 'timm_asr'

# Options that hold a path, whatever it looks like; of other options only what is plainly one.
_PATHS = ('data', 'data_dir', 'class_map', 'config', 'pretrained_path', 'initial_checkpoint',
          'kd_model_checkpoint')
# They belong to the process that ran, not to what it made.
_RUNTIME = ('rank', 'local_rank', 'world_size', 'distributed', 'prefetcher', 'print_config', 'wandb_resume_id',
            'device', 'output', 'experiment', 'resume', 'start_epoch')
_SECRET_NAME = re.compile(r'token|secret|passw|api_?key|credential', re.IGNORECASE)
_SECRET = re.compile(r'\b(hf|api|ghp|sk)_[A-Za-z0-9]{16,}|://[^/\s]+:[^/\s]+@')
_LOCAL_PATH = re.compile(r'(?:.*?:)?(?:file:|[/~\\]|[A-Za-z]:[/\\]|\.\.?[/\\])')


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, ``-dirty`` behind it if files differ; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', *words], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    try:
        git('ls-files', '--error-unmatch', '__init__.py')  # an environment may lie inside another's checkout
        return git('describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*')
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of this package, timm and PyTorch."""
    return {'package_version': __version__, 'timm_version': timm.__version__, 'torch_version': str(torch.__version__)}


def made_by() -> dict[str, Any]:
    """What a checkpoint remembers of the program that trained it."""
    return {**versions(), 'git_commit': git_commit()}


def base_name(path: str) -> str:
    """The last part of a path of any system."""
    return re.split(r'[/\\]', path.rstrip('/\\'))[-1]


def public(value: Any, is_path: bool = False) -> Any:
    """A value of an option as it may be published: plain data, base names for local paths, no secrets."""
    if isinstance(value, Mapping):
        return {str(k): public(v, is_path) for k, v in value.items() if not _SECRET_NAME.search(str(k))}
    if isinstance(value, list | tuple):
        return [public(v, is_path) for v in value]
    if isinstance(value, bool | int | float | None):
        return value
    text = str(value)
    if _SECRET.search(text):
        return None
    return base_name(text) if is_path or _LOCAL_PATH.match(text) else text


def public_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a run as they may be published."""
    return {
        name: public(value, name in _PATHS) for name, value in sorted(args.items())
        if name not in _RUNTIME and not _SECRET_NAME.search(name)}


def chosen_arguments(args: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that differ from their defaults, as they may be published."""
    return {
        name: value for name, value in public_arguments(args).items()
        if value != public(defaults.get(name)) and not (name not in defaults and not value)}


def dataset_name(args: Mapping[str, Any]) -> str | None:
    """The data set of a run: its name, or that of the folder of images."""
    folder = args.get('data_dir') or args.get('data')
    name = public(args.get('dataset') or None)
    return name or (base_name(str(folder)) if folder else None)


def metrics_summary(flat: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Accuracy before and after fusing, percent, from the content of a ``metrics.json``."""
    if not flat:
        return None
    before = {key: flat[key] for key in ('top1', 'top5', 'loss') if flat.get(key) is not None}
    after = {key: flat[f'{key}_fused'] for key in ('top1', 'top5') if flat.get(f'{key}_fused') is not None}
    more = {key: flat[key] for key in ('images', 'logit_difference_relative') if flat.get(key) is not None}
    return {'before': before or None, 'after': after or None, **more}


def provenance(facts: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole section, in one order and with every key; what nobody knows is null.

    Args:
        facts: What is known of where the weights come from; any of the keys.
        metrics: The content of a ``metrics.json``.
    """
    section: dict[str, Any] = {
        'format': 1, 'form': None, 'needs': [], 'model': None, 'asr': None, 'package': KEY, **versions(),
        'git_commit': None, 'recipe': None, 'arguments': {}, 'seed': None, 'dataset': None, 'weights': None,
        'epoch': None, 'metrics': None, 'source': None, 'weights_sha256': None,
        'dtype': None}
    section |= {key: value for key, value in facts.items() if value is not None}
    if metrics:
        section['metrics'] = metrics_summary(metrics)
    section |= {'exported_with': versions(), 'created': datetime.now(UTC).isoformat(timespec='seconds')}
    return section


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """The section of a folder's ``config.json``; empty where there is none.

    Raises:
        OSError: There is no ``config.json``.
        ValueError: It is not JSON.
    """
    config = json.loads((Path(folder) / 'config.json').read_text(encoding='utf-8'))
    section = config.get(KEY) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}
