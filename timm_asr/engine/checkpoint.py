"""The folder of a run, never taken from another one, and checkpoints in it that survive a kill at any moment.

Every file is written aside, flushed to the disk, and renamed; ``last.pth.tar`` is replaced first, and holds all that is
needed to bring the ranked copies beside it (``checkpoint-N.pth.tar``, ``model_best.pth.tar``) up to date again.
"""

import logging
import math
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
import torch.distributed as dist
from timm.models import safe_model_name

from ..checkpoints.names import ARGS, ATTENTION, BEST, CURVE, LAST, SUMMARY, WEIGHTS
from ..checkpoints.read import HASH, hash_of, read_checkpoint, read_yaml
from ..errors import BadInput, InUse, NotACheckpoint, Stopped
from ..export.place import remove_export
from .build import title_of
from .options import as_read

_logger = logging.getLogger(__name__)

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_NUMBERED = re.compile(r'checkpoint-(\d+)\.pth\.tar')
_RECOVERY = re.compile(r'recovery-(\d+)-(\d+)\.pth\.tar')
#: Options that another arm or seed has, beside the model.
_KEYWORDS = (
    'data_dir', 'dataset', 'train_split', 'train_images', 'holdout', 'split_seed', 'seed', 'pretrained', 'model_kwargs',
    'last_norm_init', 'decay_all', 'site_lr', 'psi_lr', 'backbone_kwargs', 'detector_kwargs')
_ASIDE = re.compile(r'\..+\.\d+-[0-9a-f]+\.tmp')
#: A checkpoint and its content.
Found = tuple[Path, dict[str, Any]]


class SaveFailed(Stopped):
    """A file could not be written; the one it was to replace is untouched."""


def _new_name_beside(path: Path) -> Path:
    # Nobody else takes it: two processes never write into the same one.
    return path.with_name(f'.{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp')


def _reason(error: BaseException | None) -> str:
    """What the system said: torch reports a full disk as an "unexpected position" that came of it."""
    first = str(error).splitlines()[0]
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__context__
    return first


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Make a file whole or not at all: ``write`` gets a new file beside ``path`` that is then renamed. ``SaveFailed``:
    the disk is full, read-only or the like.
    """
    aside = _new_name_beside(path)
    try:
        with aside.open('xb') as file:  # made anew: a link that lies at this name is not followed
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            aside.unlink()
        raise SaveFailed(f'{path} could not be written ({_reason(error)})') from error
    with suppress(OSError):  # of a system that does not open folders
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a second name (or a copy) of ``source``, replacing it in one step."""
    if target.exists() and target.samefile(source):
        return  # renaming one of two names of a file over the other would leave both
    aside = _new_name_beside(target)
    try:
        os.link(source, aside)
        os.replace(aside, target)
    except OSError:
        aside.unlink(missing_ok=True)
        write_atomically(target, lambda file: file.write(source.read_bytes()))


class Saver:
    """Keeps the last checkpoint, the best one (a smaller metric is better if ``decreasing``), and the best ``keep``.

    With ``keep`` 0 no numbered ones stay. What cannot be written raises ``SaveFailed``; the checkpoint before it is
    whole.
    """

    def __init__(self, folder: str | Path, decreasing: bool = False, keep: int = 10) -> None:
        self.folder = Path(folder)
        self.decreasing = decreasing
        self.keep = max(0, keep)
        self.best_metric: float | None = None
        self.best_epoch: int | None = None
        self.ranked: list[tuple[int, float | None]] = []  # (epoch, metric), best first
        self.goes_back = False  #: to an older checkpoint than the last: a best one that came later is not of this run

    @property
    def last(self) -> Path | None:
        """The last whole checkpoint, if there is one."""
        path = self.folder / LAST
        return path if path.exists() else None

    @property
    def best(self) -> Path | None:
        """The best checkpoint, or the last one while no finite metric has been seen."""
        path = self.folder / BEST
        return path if path.exists() else self.last

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` reads back."""
        return {'best_metric': self.best_metric, 'best_epoch': self.best_epoch, 'ranked': list(self.ranked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that a checkpoint holds; numbered files of a run of timm's keep their ranks."""
        self.best_metric, self.best_epoch = state.get('best_metric'), state.get('best_epoch')
        self.ranked = [(int(epoch), metric) for epoch, metric in state.get('ranked', [])]
        if 'ranked' not in state:
            there = [(path.name, None) for path in checkpoints_in(self.folder)]
            for name, metric in state.get('checkpoint_files', there):
                if match := _NUMBERED.fullmatch(name):
                    self._rank(int(match[1]), metric)
            epoch, metric = state.get('pending', (None, None))
            if epoch is not None:
                self._rank(epoch, metric)

    def _place(self, entry: tuple[int, float | None]) -> tuple[float, int]:
        # Of equal metrics the older comes first; epochs without a metric come last, the newest of them first.
        epoch, metric = entry
        return (math.inf, -epoch) if metric is None else (metric if self.decreasing else -metric, epoch)

    def _rank(self, epoch: int, metric: float | None) -> None:
        others = [entry for entry in self.ranked if entry[0] != epoch]
        self.ranked = sorted([*others, (epoch, metric)], key=self._place)[:self.keep]
        if metric is not None and self._place((epoch, metric))[0] < self._place((epoch, self.best_metric))[0]:
            self.best_metric, self.best_epoch = metric, epoch

    def save(self, state: dict[str, Any], epoch: int, metric: float | None = None) -> None:
        """Write the state of a finished epoch; a metric that is NaN or infinite is no metric."""
        if metric is not None and not math.isfinite(metric):
            metric = None
        self._rank(epoch, metric)
        self.save_last(state, epoch, metric)

    def save_last(self, state: dict[str, Any], epoch: int, metric: float | None = None) -> None:
        """Write the state of an epoch to go on from, without a place among the best."""
        self._write(LAST, {**state, 'epoch': epoch, 'metric': metric, 'saver': self.state_dict()})
        self.settle(epoch)

    def settle(self, epoch: int) -> None:
        """Bring the other files in line with ``last``, which holds ``epoch``; doing it twice changes nothing."""
        last = self.folder / LAST
        if self.best_epoch == epoch:
            _link(last, self.folder / BEST)
        elif self.goes_back and (best := self.folder / f'checkpoint-{self.best_epoch}.pth.tar').exists():
            _link(best, self.folder / BEST)
        self.goes_back = False
        kept = {number for number, _ in self.ranked}
        if epoch in kept:
            _link(last, self.folder / f'checkpoint-{epoch}.pth.tar')
        for path in self.folder.iterdir():
            numbered, recovery = _NUMBERED.fullmatch(path.name), _RECOVERY.fullmatch(path.name)
            stale = numbered is not None and int(numbered[1]) <= epoch and int(numbered[1]) not in kept
            if stale or (recovery is not None and int(recovery[1]) <= epoch):
                path.unlink(missing_ok=True)

    def save_recovery(self, state: dict[str, Any], epoch: int, update: int) -> None:
        """Write the state in the middle of an epoch, and drop the one before it."""
        name = f'recovery-{epoch}-{update}.pth.tar'
        self._write(name, {**state, 'epoch': epoch, 'recovery': True, 'update': update, 'saver': self.state_dict()})
        remove_recoveries(self.folder, but=self.folder / name)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        content = {**content, 'version': 2}
        write_atomically(self.folder / name, lambda file: torch.save({**content, HASH: hash_of(content)}, file))


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run folder, the furthest first, and the best at the end."""
    paths = list(folder.iterdir()) if folder.is_dir() else []

    def furthest(pattern: re.Pattern[str]) -> list[Path]:
        matches = [(match, path) for path in paths if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(matches, key=lambda found: tuple(map(int, found[0].groups())), reverse=True)]

    found = [*furthest(_RECOVERY), folder / LAST, *furthest(_NUMBERED), folder / BEST]
    return [path for path in found if path.exists()]


def remove_recoveries(folder: Path, but: Path | None = None) -> None:
    """Remove what an epoch left that was not finished, all but one."""
    for path in folder.iterdir():
        if _RECOVERY.fullmatch(path.name) and path != but:
            path.unlink(missing_ok=True)


def find_checkpoint(folder: Path) -> Found | None:
    """The furthest checkpoint of a run folder, and its content; None if there is none.

    A file that is no checkpoint (empty, cut off) is passed over. ``BadInput``: one that may well be whole cannot be
    read, or is not what was written: going on from an older one would overwrite it.
    """
    for path in checkpoints_in(folder):
        with suppress(NotACheckpoint):
            return path, read_checkpoint(path)
    return None


def _identity(options: dict[str, Any]) -> dict[str, Any]:
    """The data, the seed and the keywords of a run, as far as its options say them."""
    found = {key: options[key] for key in _KEYWORDS if key in options}
    if 'data_dir' in found:  # where scratch folders are, they may be others in each job; timm has ``data`` too
        found['data_dir'] = Path(found['data_dir'] or options.get('data') or '').absolute().name
    return found


def _is_alike(folder: Path, ours: dict[str, Any]) -> bool:
    """Whether the run of a folder has our identity, or does not say."""
    told: dict[str, Any] = {}
    with suppress(BadInput):
        told = _identity(read_yaml(folder / ARGS))
    other = [key for key in told if key in ours and told[key] != ours[key]]
    if other and checkpoints_in(folder):
        _logger.info(f'--resume auto passes over {folder}, which has another {", ".join(other)}.')
    return not other


def _newest_run(output: Path, ending: str, args: Any) -> tuple[Path | None, Found | None]:
    """The run folder ``*-ENDING`` like ours that was written last, and its checkpoint; None if there is none."""
    ours = _identity(as_read(vars(args)))
    written = {folder: max((path.stat().st_mtime for path in checkpoints_in(folder)), default=0.0)
               for folder in output.glob(f'*-{ending}') if _is_alike(folder, ours)}
    return next(((folder, found) for folder in sorted(written, key=written.__getitem__, reverse=True)
                 if (found := find_checkpoint(folder))), (None, None))


def _make_new(output: Path, ending: str) -> Path:
    """A folder that did not exist: of two runs that start in the same second, one gets a number."""
    output.mkdir(parents=True, exist_ok=True)
    name = f'{datetime.now():%Y%m%d-%H%M%S}'
    for number in count(1):
        folder = output / f'{name}{f".{number}" if number > 1 else ""}-{ending}'
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _hold(folder: Path) -> IO[str]:
    """Lock a folder until the file that this returns is closed, or the process ends in whatever way."""
    file = (folder / '.lock').open('w')
    if fcntl is not None:
        try:
            # A lock of the process: workers that outlive it do not keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InUse(f'another run is writing into {folder}: wait for it, or name another folder') from None
        except OSError as error:  # of a file system without locks, as NFS and Lustre may be
            _logger.warning(f'{folder} cannot be locked ({error.strerror}): start no second run there.')
    return file


def open_run_folder(args: Any, size: int) -> tuple[Path, Found | None, IO[str]]:
    """The folder of this run, the checkpoint that it goes on from (or None), and the lock on the folder.

    The folder is ``--experiment`` under ``--output``, that of the checkpoint that ``--resume`` names, the newest run
    of this model, keywords, data and seed for ``--resume auto``, or a new one named by time, model and size. BadInput
    where it holds another run, alive or not, or cannot be written, or where the checkpoint is not there.
    """
    output, ending = Path(args.output or './output/train'), f'{safe_model_name(title_of(args))}-{size}'
    named = Path(args.resume) if args.resume and args.resume != 'auto' else None
    if named is not None and not named.is_file():
        raise BadInput(f'--resume {named}: no such file; --resume auto finds the last checkpoint of a run')
    folder = output / args.experiment if args.experiment else named.resolve().parent if named else None
    found = (named, read_checkpoint(named)) if named else None
    if folder is None and args.resume == 'auto':
        folder, found = _newest_run(output, ending, args)
    try:
        if folder is None:
            folder = _make_new(output, ending)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _hold(folder)
        for path in folder.iterdir():  # of a run that was killed: nobody else may write here now
            if _ASIDE.fullmatch(path.name):
                path.unlink()
        if args.resume == 'auto' and found is None:
            found = find_checkpoint(folder)
        if not args.overwrite and not is_of(found, folder):
            if checkpoints_in(folder) and args.resume != 'auto':
                raise BadInput(f'{folder} holds the checkpoints of another run: go on with it (--resume auto), replace '
                               'it (--overwrite), or name another folder (--experiment)')
            if (folder / WEIGHTS).exists():
                raise BadInput(f'{folder} holds the network of another run: replace it (--overwrite), or name another '
                               'folder (--experiment)')
    except OSError as error:
        raise BadInput(f'cannot write into the folder {folder or output} ({error.strerror or error})') from None
    return folder, found, lock


def is_of(found: Found | None, folder: Path) -> bool:
    """Whether a checkpoint is one of the run in a folder."""
    return found is not None and found[0].resolve() in [path.resolve() for path in checkpoints_in(folder)]


def make_room(folder: Path, found: Found | None, overwrite: bool) -> None:
    """Remove what a run that begins, or goes on from a checkpoint, must not meet in its folder."""
    if found is not None and is_of(found, folder):
        remove_recoveries(folder, but=folder / found[0].resolve().name)
        return
    there = [*checkpoints_in(folder), folder / SUMMARY]
    if overwrite:
        there += [folder / CURVE, folder / ATTENTION]
        remove_export(folder)
    for path in there:
        path.unlink(missing_ok=True)


def locate(args: Any, size: int) -> tuple[Path, Found | None, IO[str] | None]:
    """:func:`open_run_folder` by the first process; all of them get folder and checkpoint, the first the lock."""
    folder, found, lock = open_run_folder(args, size) if args.rank == 0 else (None, None, None)
    if args.distributed:
        told: list[Any] = [folder, found and found[0]]
        dist.broadcast_object_list(told, src=0)
        folder, checkpoint = told
        if args.rank:
            found = checkpoint and (checkpoint, read_checkpoint(checkpoint))
    assert folder is not None
    return folder, found, lock
