"""Loading workers that end without noise when the run that reads from them does."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

#: Seconds that a worker waits, once it is told to end, for the reader to end it properly.
GRACE = 5


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A worker's excepthook. A reader that was interrupted is gone, and nobody needs a traceback from each worker."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _start(init: Callable[[int], None] | None, worker: int) -> None:
    # A thread of the standard library that hands over tensors calls the hook when its peer has hung up.
    sys.excepthook = _report
    # Terminals and job schedulers signal all processes of a run; the one that reads decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'alarm'):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
        # Status 0, since PyTorch reports any other in the reader, in the place of the error that ended the run.
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
    if init is not None:
        init(worker)


def quiet_workers(loader: Any) -> None:
    """Keep the workers of a loader from printing tracebacks of connections that the reader's end cut."""
    inner = getattr(loader, 'loader', loader)
    inner.worker_init_fn = partial(_start, inner.worker_init_fn)
