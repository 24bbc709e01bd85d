"""The folder of a run: found or made, held by a lock while the run lives, never taken from another run."""

from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist
from timm.models import safe_model_name

from ..checkpoints.names import SUMMARY
from ..checkpoints.read import read_checkpoint
from ..errors import BadInput
from .build import title_of
from .checkpoint import Found, checkpoints_in, find_checkpoint, remove_recoveries

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

DEFAULT_OUTPUT = './output/train'
LOCK = '.lock'


def _newest_run(output: Path, ending: str) -> tuple[Path | None, Found | None]:
    """The run folder ``*-ENDING`` whose checkpoint was written last, and that checkpoint; None if none has one."""
    written = {folder: max((path.stat().st_mtime for path in checkpoints_in(folder)), default=0.0)
               for folder in output.glob(f'*-{ending}')}
    return next(((folder, found) for folder in sorted(written, key=written.__getitem__, reverse=True)
                 if (found := find_checkpoint(folder))), (None, None))


def _make_new(output: Path, ending: str) -> Path:
    """A folder that did not exist: of two runs that start in the same second, one gets a number."""
    name = f'{datetime.now():%Y%m%d-%H%M%S}'
    for number in count(1):
        folder = output / f'{name}{f".{number}" if number > 1 else ""}-{ending}'
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def _hold(folder: Path) -> IO[str]:
    """Lock a folder until the file that this returns is closed, or the process ends in whatever way."""
    file = (folder / LOCK).open('w')
    if fcntl is not None:
        try:
            # A lock of the process: workers that outlive it do not keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f'another run is writing into {folder}; name another one with --experiment') from None
    return file


def open_run_folder(args: Any, size: int) -> tuple[Path, Found | None, IO[str]]:
    """The folder of this run, the checkpoint that it goes on from (or None), and the lock on the folder.

    The folder is ``--experiment`` under ``--output``, that of the checkpoint that ``--resume`` names, the newest run
    of this model for ``--resume auto``, or a new one named by time, model and size. BadInput where it holds another
    run, alive or not, or cannot be written, or where the checkpoint is not there.
    """
    output, ending = Path(args.output or DEFAULT_OUTPUT), f'{safe_model_name(title_of(args))}-{size}'
    named = Path(args.resume) if args.resume and args.resume != 'auto' else None
    if named is not None and not named.is_file():
        raise BadInput(f'--resume {named}: no such file; --resume auto finds the last checkpoint of a run')
    folder = output / args.experiment if args.experiment else named.resolve().parent if named else None
    found = (named, read_checkpoint(named)) if named else None
    if folder is None and args.resume == 'auto':
        folder, found = _newest_run(output, ending)
    try:
        if folder is None:
            folder = _make_new(output, ending)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _hold(folder)
        for path in folder.glob('.*.tmp'):  # of a run that was killed: nobody else may write here now
            path.unlink()
        if args.resume == 'auto' and found is None:
            found = find_checkpoint(folder)
        if found is not None and found[0].resolve().parent == folder.resolve():
            remove_recoveries(folder, but=found[0])
        elif (there := checkpoints_in(folder)) and not args.overwrite and args.resume != 'auto':
            raise BadInput(f'{folder} holds the checkpoints of another run: go on with it (--resume auto), replace it '
                           '(--overwrite), or name another folder (--experiment)')
        else:
            for path in [*there, folder / SUMMARY]:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f'cannot write into the folder {folder or output} ({error.strerror or error})') from None
    return folder, found, lock


def locate(args: Any, size: int) -> tuple[Path, Found | None, IO[str] | None]:
    """:func:`open_run_folder` by the first process; all of them get folder and checkpoint, the first the lock."""
    if args.rank == 0:
        folder, found, lock = open_run_folder(args, size)
    if not args.distributed:
        return folder, found, lock
    told: list[Any] = [folder, found and found[0]] if args.rank == 0 else [None, None]
    dist.broadcast_object_list(told, src=0)
    if args.rank == 0:
        return folder, found, lock
    return told[0], told[1] and (told[1], read_checkpoint(told[1])), None
