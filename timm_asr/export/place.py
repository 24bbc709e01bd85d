"""A folder of weights that is there whole or not at all, and the list in its ``config.json`` of what belongs to it.

What is written goes into a folder beside and takes the place of the old one by a rename. Where the folder has other
files too, a run's say, they stay where they are: then ``config.json`` goes first and comes last, so that whoever looks
in between finds no folder of weights, never the weights of one export under the labels of another.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints.find import FOLDER_PREFIX
from ..checkpoints.names import CODE, CONFIG, KEY, METRICS, TRAINABLE, WEIGHTS
from ..checkpoints.provenance import file_sha256
from ..checkpoints.read import is_folder_of_weights, is_regular, read_config
from ..errors import BadInput

# What one export writes belongs together: where another takes its place, none of it stays.
_OWN = {WEIGHTS, CONFIG, METRICS, CODE, f'{TRAINABLE}/{CONFIG}', f'{TRAINABLE}/{WEIGHTS}'}


def files_in(folder: Path) -> set[str]:
    """The paths of all files in a folder, relative to it; of links too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_symlink() or path.is_file()}


def _listed(folder: Path) -> set[str]:
    """The files that belong to the export in a folder."""
    try:
        return {*_OWN, *((read_config(folder).get(KEY) or {}).get('files') or {})}
    except BadInput:  # nothing that can be read
        return _OWN


def check_weights(folder: Path, config: dict[str, Any], how: str) -> None:
    """Raise ``BadInput`` for weights that are not those of ``config.json``, truncated ones say; ``how`` helps."""
    weights, expected = folder / WEIGHTS, (config.get(KEY) or {}).get('weights_sha256')
    if not weights.is_file():
        raise BadInput(f'{folder} has no {WEIGHTS}; {how}')
    if expected and (found := file_sha256(weights)) != expected:
        raise BadInput(f'{weights} was altered: its SHA-256 is {found[:12]}..., and {CONFIG} says {expected[:12]}...; '
                       f'{how}')


def list_in_manifest(folder: Path, names: Iterable[str]) -> None:
    """Let files that were written later, plots or an ONNX file, belong to the export in a folder."""
    if not is_folder_of_weights(folder):
        return
    config = read_config(folder)
    found = {name: file_sha256(folder / name) for name in names if is_regular(folder / name)}
    if config.get(KEY) and found:
        config[KEY]['files'] = {**(config[KEY].get('files') or {}), **found}
        aside = folder / f'.{CONFIG}.{secrets.token_hex(4)}'
        write_whole(aside, json.dumps(config, indent=2).encode())
        os.replace(aside, folder / CONFIG)


def refuse_file(folder: Path) -> None:
    """Raise ``BadInput`` where a file stands in the place of a folder that is to be written."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f'{folder} is a file, and a folder is to be written there')


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """A new folder on the disk of ``folder``, which takes its place at the end; until then an error changes nothing."""
    place = folder.resolve()
    # A folder that holds an export and nothing else can be renamed.
    alone = not place.is_dir() or (
        files_in(place) <= _listed(place) and not place.is_mount() and os.access(place.parent, os.W_OK)
        and place not in (Path.cwd(), *Path.cwd().parents))
    aside = (place.parent if alone else place) / f'.{place.name}.{secrets.token_hex(4)}.part'
    try:
        aside.mkdir(parents=True)
        yield aside
        if not place.exists():
            os.replace(aside, place)
        elif alone:
            old = aside.with_suffix('.old')
            os.replace(place, old)
            os.replace(aside, place)
            shutil.rmtree(old, ignore_errors=True)
        else:
            new = files_in(aside)
            remove_export(place, keep=new - {CONFIG})
            for name in sorted(new, key=lambda name: (name == CONFIG, name)):
                (place / name).parent.mkdir(exist_ok=True)
                os.replace(aside / name, place / name)
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


def refuse_taken(folder: Path, overwrite: bool, more: Iterable[str] = ()) -> None:
    """Before any work: raise ``BadInput`` rather than replace an export, or ``more`` files, without being told to."""
    refuse_file(folder)
    taken = sorted(name for name in {*more, *_OWN} if (folder / name).exists())
    if taken and not overwrite:
        raise BadInput(f'{folder} has a {WEIGHTS if WEIGHTS in taken else taken[0]} already; choose another folder, or '
                       'replace what is there (--force, or overwrite=True)')


def refuse_own(source: str | Path, folder: Path) -> None:
    """Raise ``BadInput`` where an export would take the place of the very export that it is made of."""
    read = Path(str(source).removeprefix(FOLDER_PREFIX)).resolve()
    read = read.parent if read.name == WEIGHTS else read
    if is_folder_of_weights(read) and folder.resolve() in (read, read.parent if read.name == TRAINABLE else read):
        raise BadInput(f'{folder} is the folder that is read, and its trainable form would be lost; name another one')


def remove_export(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove the files of an export from a folder, ``config.json`` first; others stay."""
    for name in sorted(_OWN - set(keep), key=lambda name: name != CONFIG):
        (folder / name).unlink(missing_ok=True)
    if (folder / TRAINABLE).is_dir() and not any((folder / TRAINABLE).iterdir()):
        (folder / TRAINABLE).rmdir()
