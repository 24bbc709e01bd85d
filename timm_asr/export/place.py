"""A folder that is there whole or not at all: written aside, then renamed."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .provenance import KEY, file_sha256, read_provenance

WEIGHTS, CONFIG, METRICS, TRAINABLE = 'model.safetensors', 'config.json', 'metrics.json', 'trainable'
# What one export writes belongs together: where another takes its place, none of it stays.
_OWN = (WEIGHTS, CONFIG, METRICS, TRAINABLE)


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder on the disk of ``folder``, for what will be placed there; gone at the end.

    Raises:
        BadInput: ``folder`` is a file, or nothing can be written there.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f'{folder} is a file, and a folder is to be written there')
    name = f'.{folder.absolute().name}.{secrets.token_hex(4)}.part'
    aside = (folder if folder.is_dir() else folder.absolute().parent) / name
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f'{folder} cannot be written ({error.strerror})') from None
    try:
        yield aside
    except OSError as error:
        raise BadInput(f'{folder} cannot be written ({error.strerror or error})') from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _without_provenance(config: Path) -> object:
    try:
        content = json.loads(config.read_text(encoding='utf-8'))
    except ValueError:
        return None
    return {k: v for k, v in content.items() if k != KEY} if isinstance(content, dict) else None


def holds_same(folder: Path, other: Path) -> bool:
    """Whether two folders have the same weights under the same configuration, whenever they were written."""
    pairs = [(f / WEIGHTS, f / CONFIG) for f in (folder, other)]
    if not all(path.is_file() for pair in pairs for path in pair):
        return False
    (weights, config), (other_weights, other_config) = pairs
    return (
        weights.stat().st_size == other_weights.stat().st_size
        and _without_provenance(config) == _without_provenance(other_config)
        and file_sha256(weights) == file_sha256(other_weights))


def refuse_other(folder: Path, facts: Mapping[str, Any], overwrite: bool) -> None:
    """Before any work: refuse a folder whose weights come from somewhere else.

    Args:
        folder: Where something is to be written.
        facts: The provenance of what is to be written.
        overwrite: Whether it may replace what is there.

    Raises:
        BadInput: It may not, and ``folder`` holds weights of another source.
    """
    if overwrite or not (folder / WEIGHTS).is_file():
        return
    try:
        there = read_provenance(folder)
    except (OSError, ValueError):
        there = {}
    if any(there.get(key) != facts.get(key) for key in ('source', 'weights')):
        raise _taken(folder, WEIGHTS)


def _taken(folder: Path, name: str) -> BadInput:
    return BadInput(f'{folder} has another {name} already; choose another folder, or replace what is there '
                    '(--force, or overwrite=True)')


def check_place(aside: Path, folder: Path, overwrite: bool) -> None:
    """Refuse to replace anything but the same weights.

    Raises:
        BadInput: A file or folder of these names is there and is not the same, and ``overwrite`` was not given.
    """
    names = {path.name for path in aside.iterdir()} | set(_OWN)
    taken = sorted(name for name in names if (folder / name).exists())
    if taken and not overwrite and not holds_same(aside, folder):
        raise _taken(folder, WEIGHTS if WEIGHTS in taken else taken[0])


def put_in_place(aside: Path, folder: Path) -> None:
    """Rename what was written aside; ``config.json``, which names the hash of the weights, comes last."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, folder)
        return
    new = {path.name for path in aside.iterdir()}
    if (folder / WEIGHTS).is_file() and not holds_same(aside, folder):
        for name in set(_OWN) - new:
            remove(folder / name)
    for name in sorted(new, key=lambda name: (name == CONFIG, name == WEIGHTS)):
        if (folder / name).is_dir():
            remove(folder / name)
        os.replace(aside / name, folder / name)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
