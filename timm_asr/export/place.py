"""A folder of weights that is there whole or not at all, and the list in its ``config.json`` of what belongs to it.

What is written goes into a folder beside and takes the place of the old one by a rename. Where the folder has other
files too, a run's say, they stay where they are: then ``config.json`` goes first and comes last, so that whoever looks
in between finds no folder of weights, never the weights of one export under the labels of another.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints.names import CODE, CONFIG, KEY, METRICS, TRAINABLE, WEIGHTS
from ..checkpoints.provenance import file_sha256
from ..checkpoints.read import is_folder_of_weights, is_regular, read_config
from ..errors import BadInput

# What one export writes belongs together: where another takes its place, none of it stays.
_OWN = {WEIGHTS, CONFIG, METRICS, CODE, f'{TRAINABLE}/{CONFIG}', f'{TRAINABLE}/{WEIGHTS}'}


def files_in(folder: Path) -> set[str]:
    """The paths of all files in a folder, relative to it; of links too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_symlink() or path.is_file()}


def manifest_of(folder: Path) -> dict[str, str]:
    """The files that belong to the export in a folder, ``config.json`` apart, with their SHA-256; empty if unknown."""
    return _section(folder).get('files') or {}


def _section(folder: Path) -> dict[str, Any]:
    """What the configuration in a folder says of its export; empty where it says nothing that can be read."""
    try:
        return read_config(folder).get(KEY) or {}
    except BadInput:
        return {}


def list_in_manifest(folder: Path, names: Iterable[str]) -> None:
    """Let files that were written later, plots or an ONNX file, belong to the export in a folder."""
    if not is_folder_of_weights(folder):
        return
    config = read_config(folder)
    section = config.get(KEY)
    found = {name: file_sha256(folder / name) for name in names if is_regular(folder / name)}
    if section and found:
        section['files'] = {**(section.get('files') or {}), **found}
        aside = folder / f'.{CONFIG}.{secrets.token_hex(4)}'
        write_whole(aside, json.dumps(config, indent=2).encode())
        os.replace(aside, folder / CONFIG)


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder on the disk of ``folder``, for what will be placed there; gone at the end."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f'{folder} is a file, and a folder is to be written there')
    place = folder.resolve()
    name = f'.{place.name}.{secrets.token_hex(4)}.part'
    aside = (place if place.is_dir() and not _is_alone(place) else place.parent) / name
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


def _is_alone(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else, and can be renamed."""
    own = {*manifest_of(folder), *_OWN}
    return files_in(folder) <= own and not folder.is_mount() and os.access(folder.parent, os.W_OK)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def holds_same(folder: Path, other: Path) -> bool:
    """Whether two folders have the same weights under the same configuration; other files may differ."""
    try:
        configs = [read_config(one) for one in (folder, other)]
    except BadInput:  # there is none, or a broken one
        return False
    for config in configs:
        for key in ('files', 'created'):
            (config.get(KEY) or {}).pop(key, None)
    weights = [one / WEIGHTS for one in (folder, other)]
    return configs[0] == configs[1] and all(map(is_regular, weights)) and (
        file_sha256(weights[0]) == file_sha256(weights[1]))


def _taken(folder: Path, name: str) -> BadInput:
    return BadInput(f'{folder} has another {name} already; choose another folder, or replace what is there '
                    '(--force, or overwrite=True)')


def refuse_other(folder: Path, facts: Mapping[str, Any], overwrite: bool) -> None:
    """Before any work: raise ``BadInput`` for a folder whose weights come from somewhere else than ``facts`` say."""
    if overwrite or not (folder / WEIGHTS).is_file():
        return
    there = _section(folder)
    if any(there.get(key) != facts.get(key) for key in ('source', 'weights')):
        raise _taken(folder, WEIGHTS)


def check_place(aside: Path, folder: Path, overwrite: bool) -> None:
    """Raise ``BadInput`` rather than replace anything but the same weights."""
    taken = sorted(name for name in {*files_in(aside), *_OWN} if (folder / name).exists())
    if taken and not overwrite and not holds_same(aside, folder):
        raise _taken(folder, WEIGHTS if WEIGHTS in taken else taken[0])


def put_in_place(aside: Path, folder: Path) -> None:
    """Let what was written aside take its place: the whole folder by renames, or beside other files one by one."""
    place = folder.resolve()
    if not place.exists():
        os.replace(aside, place)
    elif aside.parent != place:
        old = place.with_name(f'.{place.name}.{secrets.token_hex(4)}.old')
        os.replace(place, old)
        os.replace(aside, place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new = files_in(aside)
        remove_export(place, keep=new - {CONFIG})
        for name in sorted(new, key=lambda name: (name == CONFIG, name)):
            (place / name).parent.mkdir(exist_ok=True)
            os.replace(aside / name, place / name)


def remove_export(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove the files of an export from a folder, ``config.json`` first; others stay."""
    for name in sorted(_OWN - set(keep), key=lambda name: name != CONFIG):
        (folder / name).unlink(missing_ok=True)
    if (folder / TRAINABLE).is_dir() and not any((folder / TRAINABLE).iterdir()):
        (folder / TRAINABLE).rmdir()
