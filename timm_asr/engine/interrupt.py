"""Ctrl-C and SIGTERM end a run between two batches.

Python raises KeyboardInterrupt wherever it stands, and a loader that is interrupted in the middle of its queues holds a
lock for ever: the process says that it stopped and never ends. So the signal is only noted, and acted on at a place
where nothing is half done.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_requested = False
#: Seconds that a loading worker waits, once it is told to end, for the reader to end it properly.
GRACE = 5


def _note(number: int, frame: FrameType | None) -> None:
    global _requested
    if _requested:  # somebody asks twice: the step takes too long for them
        raise KeyboardInterrupt
    _requested = True
    if os.environ.get('RANK', '0') == '0':
        # Not through logging or print, which this handler may have interrupted.
        os.write(2, b'\nStopping after this step; once more (Ctrl-C) stops at once.\n')


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM waits for the next batch of :func:`stoppable`; a second one does not.

    A KeyboardInterrupt also takes the place of a RuntimeError that came of the signal, which may reach loading workers
    and other processes of the run as well.
    """
    global _requested
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield
        return
    _requested = False
    before = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except RuntimeError:
        if _requested:
            raise KeyboardInterrupt from None
        raise
    finally:
        _requested = False
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, until a signal inside :func:`deferred_interrupts`; then KeyboardInterrupt before the next one."""
    for batch in batches:
        if _requested:
            raise KeyboardInterrupt
        yield batch
    if _requested:
        raise KeyboardInterrupt


class Stoppable:
    """A loader whose every reading is :func:`stoppable`."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return stoppable(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not issubclass(kind, ConnectionError | EOFError):  # of a reader that is gone: nobody needs it from each worker
        sys.__excepthook__(kind, error, trace)


def _start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    sys.excepthook = _report
    # Terminals and job schedulers signal all processes of a run; the one that reads decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'alarm'):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))  # PyTorch reports any other status as an error
    if init is not None:
        init(worker)


def quiet_workers(loader: Any) -> None:
    """Let the workers of a loader end when its reader does, without tracebacks."""
    inner = getattr(loader, 'loader', loader)
    inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)
