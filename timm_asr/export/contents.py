"""Which files of a folder are published, and whether a repository has them."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import yaml
from huggingface_hub.hf_api import RepoSibling

from ..errors import BadInput
from .place import CONFIG, METRICS, TRAINABLE, WEIGHTS
from .provenance import KEY, file_sha256, public, public_arguments

CARD = 'README.md'
_ARGUMENTS = 'args.yaml'
_NAMES = (CARD, CONFIG, WEIGHTS, METRICS, 'summary.csv', _ARGUMENTS)
_PATTERNS = ('*.png', '*.onnx', '*.onnx.data')
_CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file as it is to be published.

    Args:
        path: In the repository.
        source: Where its content is, or the content itself.
    """

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def is_same_as(self, remote: RepoSibling) -> bool:
        """Whether a repository has just this content, by the hash that it keeps of it."""
        if remote.lfs is not None:
            found = (hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes)
                     else file_sha256(self.source))
            return found == remote.lfs.sha256
        digest = hashlib.sha1(b'blob %d\0' % self.size)  # as git names it
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with self.source.open('rb') as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest() == remote.blob_id


def is_own(path: str) -> bool:
    """Whether a file of a repository describes its weights, so that it cannot stay beside others."""
    return (
        path in (*_NAMES[3:], 'curve.png', 'attention.png', f'{TRAINABLE}/{CONFIG}', f'{TRAINABLE}/{WEIGHTS}')
        or ('/' not in path and path.endswith(('.onnx', '.onnx.data', '.pt2'))))


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder of weights.

    Raises:
        BadInput: There is none, or it names no architecture.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    except OSError:
        raise BadInput(f'{folder} is not a folder of weights: it has no {CONFIG}; write one by '
                       '`python -m timm_asr export` or timm_asr.save_fused') from None
    except ValueError:
        raise BadInput(f'{folder / CONFIG} is not valid JSON') from None
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise BadInput(f'{folder / CONFIG} names no architecture')
    return config


def check_weights(folder: Path, config: dict[str, Any], how: str) -> None:
    """Refuse weights that are truncated, or are not those that ``config.json`` was written for.

    Args:
        folder: That they are in.
        config: Of the folder; without a section ``timm_asr`` it says nothing of the hash.
        how: What helps, for the sentence.

    Raises:
        BadInput: One sentence.
    """
    weights = folder / WEIGHTS
    try:
        with safetensors.safe_open(weights, framework='pt') as file:
            file.keys()
    except FileNotFoundError:
        raise BadInput(f'{folder} has no {WEIGHTS}; {how}') from None
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f'{weights} is truncated or damaged ({str(error).rstrip(".")}); {how}') from None
    expected = (config.get(KEY) or {}).get('weights_sha256')
    if expected and (found := file_sha256(weights)) != expected:
        raise BadInput(f'{weights} was altered: its SHA-256 is {found[:12]}..., and {CONFIG} says {expected[:12]}...; '
                       f'{how}')


def collect(folder: Path) -> tuple[list[File], list[str]]:
    """The files of a folder that are published, and the names of those that are not.

    Published are the weights with their configuration, figures, options, log, plots and ONNX form, and the folder
    ``trainable``; never a checkpoint or anything else that may be a pickle. Of local paths in ``args.yaml`` and
    ``metrics.json`` the last part stays.

    Raises:
        BadInput: The folder is not one of weights, or its weights are not those of its configuration.
    """
    if not folder.is_dir():
        raise BadInput(f'{folder} is not a folder')
    again = 'write the folder again'
    check_weights(folder, read_config(folder), again)
    parts = [folder]
    if (folder / TRAINABLE).is_dir():
        check_weights(folder / TRAINABLE, read_config(folder / TRAINABLE), again)
        parts.append(folder / TRAINABLE)
    files, left = [], []
    for path in _files(parts):
        name = path.relative_to(folder).as_posix()
        known = path.name in (_NAMES if path.parent == folder else (CONFIG, WEIGHTS))
        if known or (path.parent == folder and any(path.match(pattern) for pattern in _PATTERNS)):
            files.append(File(name, _PUBLIC.get(name, lambda path: path)(path)))
        else:
            left.append(name)
    return files, left + [f'{path.name}/' for path in sorted(folder.iterdir())
                          if path.is_dir() and path.name != TRAINABLE and not path.name.startswith('.')]


def public_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Figures as they may be published: of the data set's path the last part."""
    return {**metrics, 'dataset': public(metrics['dataset'])} if metrics.get('dataset') else metrics


def _metrics(path: Path) -> Path | bytes:
    try:
        metrics = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        metrics = None
    if not isinstance(metrics, dict):
        raise BadInput(f'{path} is not valid JSON')
    clean = public_metrics(metrics)
    return path if clean == metrics else json.dumps(clean, indent=2).encode() + b'\n'


def _files(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.iterdir())
            if path.is_file() and not path.name.startswith('.')]


def as_yaml(options: dict[str, Any]) -> str:
    """Options one a line."""
    return ''.join(
        f'{name}: {yaml.safe_dump(value, default_flow_style=True, width=10_000)}' if isinstance(value, list | dict)
        else yaml.safe_dump({name: value}, default_flow_style=False, width=10_000) for name, value in options.items())


def _arguments(path: Path) -> bytes:
    try:
        options = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError):
        options = None
    if not isinstance(options, dict):
        raise BadInput(f'{path} is not a file of options')
    return as_yaml(public_arguments(options)).encode()


#: How a file is read that may name the machine.
_PUBLIC: dict[str, Callable[[Path], Path | bytes]] = {_ARGUMENTS: _arguments, METRICS: _metrics}
