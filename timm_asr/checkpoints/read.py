"""The content of a file that somebody else may have written: never run, never larger than it looks, checked once."""

import argparse
import errno
import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from ..errors import BadInput, NotACheckpoint, Stopped, sentence
from .names import CONFIG, WEIGHT_SUFFIXES
from .schema import CHECKPOINT, CONFIGURATION, check

#: Key of a checkpoint: the hash of all else in it.
HASH = 'content_sha256'
_LARGEST_TEXT = 16 << 20
_MOST_VALUES = 200_000


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop; the next one too where it ends with a colon."""
    first, *rest = [line.strip() for line in sentence(error).strip().splitlines()] or [type(error).__name__]
    text = (f'{first} {rest[0]}' if first.endswith(':') and rest else first).rstrip('.')
    return text if len(text) <= 200 else f'{text[:199]}…'


def is_regular(path: Path) -> bool:
    """Whether a path is a file itself, and no link to one."""
    return path.is_file() and not path.is_symlink()


def read_text(path: Path) -> str:
    """The content of a text file that is not too long; else ``BadInput``."""
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise BadInput(f'{path} is refused: it has {path.stat().st_size:,} bytes, where a few thousand belong')
        return path.read_text(encoding='utf-8')
    except OSError as error:
        raise BadInput(f'{path} cannot be read ({error.strerror})') from None
    except UnicodeDecodeError:
        raise BadInput(f'{path} is not a text file') from None


def _expanded(value: Any) -> Iterator[None]:
    """As many times as there are values inside a nested one."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield
        yield from _expanded(part)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping in a YAML file, empty for an empty file; ``BadInput`` if its aliases expand to far more than that."""
    path = Path(path)
    try:
        content = yaml.safe_load(read_text(path))
        if sum(1 for _ in islice(_expanded(content), _MOST_VALUES + 1)) > _MOST_VALUES:
            raise BadInput(f'{path} is refused: its aliases expand it to more than {_MOST_VALUES:,} values')
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadInput(f'{path} is not valid YAML ({" ".join(str(error).split())[:100]})') from None
    return _mapping(content or {}, path, 'YAML')


def read_json(path: str | Path) -> dict[str, Any]:
    """An object in a JSON file; ``BadInput`` if it cannot be read or holds something else."""
    path = Path(path)
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise BadInput(f'{path} is not valid JSON') from None
    return _mapping(content, path, 'JSON')


def _mapping(content: Any, path: Path, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise BadInput(f'{path} is not valid {kind} for options by name: it holds a {type(content).__name__}')
    return content


def is_folder_of_weights(path: str | Path) -> bool:
    """Whether a folder has the form that ``save_fused`` writes, and that timm's ``local-dir:`` reads."""
    return (Path(path) / CONFIG).is_file()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a folder of weights, its fields checked; ``BadInput`` says what is missing or wrong."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise BadInput(f'{folder} is not a folder of weights: it has no {CONFIG}; write one by '
                       '`timm-asr export` or timm_asr.save_fused')
    config = read_json(path)
    if not config.get('architecture'):
        raise BadInput(f'{path} names no architecture')
    check(config, CONFIGURATION, str(path))
    return config


def hash_of(content: Any) -> str:
    """SHA-256 of what a checkpoint holds: tensors with their types and shapes, and plain values, with their places."""
    digest = hashlib.sha256()

    def add(value: Any, place: str) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f'{place} {value.dtype} {tuple(value.shape)}\n'.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict | list | tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                add(item, f'{place}/{key}')
        else:
            digest.update(f'{place} {value!r}\n'.encode())

    add(content, '')
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict in a weight file, ``.safetensors`` or by ``torch.save``, its fields checked; no code in it is run.

    That is a training checkpoint (``arch``, ``state_dict``, ...) or a bare state dict. The options under ``args`` are
    a dict, also where timm's script wrote a Namespace. ``BadInput``: it is missing, cut off, of another kind, a pickle
    that would run code, larger inside than outside, has a field of the wrong kind, or is not what its hash says.
    ``Stopped``: the disk cannot read it, or there is no memory for it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f'no checkpoint at {path}')
    if path.stat().st_size == 0:
        raise NotACheckpoint(f'{path} is empty: the checkpoint was never written whole')
    try:
        with path.open('rb') as file:
            magic = file.read(2)
    except OSError as error:
        raise Stopped(f'{path} cannot be read ({error.strerror})') from None
    if path.suffix == '.safetensors':
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise BadInput(f'{path} is truncated or not a safetensors file ({first_line(error)})') from None
    content = _unpickled(path, magic)
    if not isinstance(content, dict):
        raise BadInput(f'{path} holds a {type(content).__name__}, not a checkpoint or a state dict')
    if isinstance(content.get('args'), argparse.Namespace):
        content['args'] = vars(content['args'])
    args = content.get('args')
    if isinstance(args, dict) and isinstance(args.get('input_size'), int):  # DeiT's is a side
        content['args'] = {**args, 'img_size': args['input_size'], 'input_size': None}
    check(content, CHECKPOINT, str(path))
    return content


def _unpickled(path: Path, magic: bytes) -> Any:
    if magic not in (b'PK', b'\x80\x02', b'\x80\x03', b'\x80\x04'):
        raise NotACheckpoint(f'{path} is not a checkpoint: it is neither a safetensors file nor one that torch.save '
                             f'wrote ({", ".join(WEIGHT_SUFFIXES)})')
    try:
        if magic == b'PK' and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = sum(entry.file_size for entry in archive.infolist())
            if inside > 2 * path.stat().st_size + (1 << 20):  # torch.save compresses nothing
                raise BadInput(f'{path} is refused: it has {path.stat().st_size:,} bytes and expands to {inside:,}, '
                               'which no file of torch.save does')
        # timm's own training checkpoints keep their options as an argparse.Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
        if isinstance(content, dict) and HASH in content and content.pop(HASH) != hash_of(content):
            raise BadInput(f'{path} is damaged: it holds something else than was written; take another copy, or remove '
                           f'it to go on from an earlier checkpoint (whoever changed it removes {HASH!r} in it)')
        return content
    except BadInput:
        raise
    except pickle.UnpicklingError as error:
        if 'GLOBAL' in str(error) or 'global' in str(error) or 'Can only' in str(error):
            raise BadInput(f'{path} is refused: it is a pickle that would run code; ask its author for a safetensors '
                           'file or a plain state dict') from None
        raise BadInput(f'{path} is damaged, or not a checkpoint that torch.save wrote') from None
    except Exception as error:  # damaged bytes end in whatever the unpickler trips over
        if isinstance(error, MemoryError) or getattr(error, 'errno', None) not in (None, errno.EINVAL):
            # The disk, not the file: whoever looks for a whole checkpoint must not take it for a damaged one.
            raise Stopped(f'{path} cannot be read ({getattr(error, "strerror", None) or "out of memory"})') from None
        if magic == b'PK' and not zipfile.is_zipfile(path):
            raise NotACheckpoint(f'{path} is truncated ({first_line(error)[:120]})') from None
        raise BadInput(f'{path} is not a checkpoint that this PyTorch reads ({first_line(error)[:120]})') from None
