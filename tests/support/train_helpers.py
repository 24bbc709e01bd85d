"""Small images and fresh processes for the tests of the training engine."""

import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_CONTEXT = multiprocessing.get_context('forkserver')
# Each child starts as a copy of a process that has imported all this once.
_CONTEXT.set_forkserver_preload(['timm_asr.engine.training', 'train_helpers'])


def make_images(root: Path, classes: int = 3, train: int = 8, validation: int = 4, size: int = 24) -> Path:
    """A folder of small PNGs whose classes differ in colour; ``train`` and ``validation`` images of each class."""
    random = np.random.default_rng(0)
    for split, count in (('train', train), ('validation', validation)):
        for label in range(classes):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (size, size, 3))
                pixels[..., label % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root


@dataclass
class Result:
    """How a process ended."""

    code: int
    text: str


def _child(argv: list[str], log: str, setup: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ['train.py', *argv]
    multiprocessing.set_start_method('fork', force=True)  # for loading workers: they start at once
    from timm_asr.engine import side_by_side
    from timm_asr.engine.commands import run_command
    side_by_side.TURNS['rounds'] = 2  # what the table says of times is no test's business
    sys.modules['matplotlib'] = None  # takes longer than these runs themselves
    exec(setup, {})
    code = run_command('train', argv, 'train.py')
    sys.stdout.flush()
    sys.exit(code)


def start(argv: list, log: Path, setup: str = ''):
    """Start ``train.py`` with these arguments in a fresh process, after the Python code ``setup``."""
    process = _CONTEXT.Process(target=_child, args=([*map(str, argv), '--device', 'cpu'], str(log), setup))
    process.start()
    return process


def run(argv: list, log: Path, setup: str = '') -> Result:
    """Run ``train.py`` to its end."""
    process = start(argv, log, setup)
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f'took longer than 300 s:\n{log.read_text()[-2000:]}')
    return Result(process.exitcode, log.read_text())


def python(*words: object, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run another Python with these arguments in the root of the clone; what it printed, if it ended well."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=Path(__file__).parents[2], text=True,
                          capture_output=True, timeout=timeout, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def children_of(pid: int) -> list[int]:
    """Processes that this one started and that still run."""
    children = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):  # it may have ended meanwhile
            parent = stat.read_text().rpartition(')')[2].split()[1]
            children += [int(stat.parent.name)] * (int(parent) == pid)
    return children
