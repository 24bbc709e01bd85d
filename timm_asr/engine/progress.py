"""A progress bar on a terminal, plain log lines anywhere else."""

import logging
import sys

from tqdm import tqdm

_logger = logging.getLogger('timm_asr')


class _Handler(logging.StreamHandler):
    """Writes above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        warned = f'{record.levelname.lower()}: ' if record.levelno >= logging.WARNING else ''
        tqdm.write(warned + self.format(record), file=sys.stderr)


def setup_logging(primary: bool = True) -> None:
    """Log this package and timm to stderr; of several processes, only the first says more than errors."""
    for name in ('timm_asr', 'timm'):
        logger = logging.getLogger(name)
        logger.handlers[:] = [_Handler()]
        logger.propagate = False
        quiet = logging.ERROR if not primary else logging.INFO if name == 'timm_asr' else logging.WARNING
        logger.setLevel(quiet)


class Progress:
    """Progress over ``total`` updates: a bar if stderr is a terminal; otherwise every ``line`` is logged."""

    def __init__(self, total: int, done: int = 0, bar: bool = True) -> None:
        self.bar = tqdm(total=total, initial=done, unit='step', dynamic_ncols=True, smoothing=0.05,
                        disable=not (bar and sys.stderr.isatty()))

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def line(self, text: str, always: bool = False) -> None:
        """Log a line; while a bar is shown, only those that are meant for it too."""
        if always or self.bar.disable:
            _logger.info(text)
