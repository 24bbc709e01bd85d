"""What the user did wrong, said in one sentence instead of a traceback."""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches


class BadInput(Exception):  # noqa: N818 - it is not the program that failed
    """An input that cannot work; its text is one sentence that names the input and what would work."""


class NotACheckpoint(BadInput):
    """A file that is certainly no whole checkpoint: empty, cut off, or of another kind."""


class InUse(BadInput):
    """A folder of a run that another process is making."""


class OwnBadInput(BadInput):
    """What one process of several met alone, such as an image of its part of the data: it says so itself."""


def nearest(name: str, known: Sequence[str], count: int = 1) -> list[str]:
    """The entries of ``known`` that look most like ``name``, best first; at least one if there are any."""
    return get_close_matches(name, known, n=count, cutoff=0.0)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint at the known name nearest to a mistyped one, '' where none is near."""
    match = get_close_matches(name, known, n=1)
    return f", did you mean '{match[0]}'" if match else ''


class Stopped(Exception):  # noqa: N818 - not an error of the program either
    """A run that cannot go on; its text is one sentence that says why and what is left."""


def sentence(error: BaseException) -> str:
    """The text of an error; of one that came out of a loading worker, the part after the worker's traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith('Caught ') and len(lines) > 1:
        return lines[-1].partition(': ')[2] or lines[-1]
    return str(error)


def run_main(main: Callable[[], int | None], prog: str) -> int:
    """Run a script's ``main`` and return its exit status.

    A ``BadInput`` becomes one line on stderr and status 2, a ``Stopped`` one line and status 1, Ctrl-C status 130. Of
    several processes only the first speaks, unless another met something that the first does not know.
    """
    try:
        return main() or 0
    except (BadInput, Stopped) as error:
        if os.environ.get('RANK', '0') == '0' or isinstance(error, OwnBadInput):
            print(f'{prog}: error: {sentence(error)}', file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if type(error).__name__ != 'OutOfMemoryError':  # torch's; help does without torch
            raise
        print(f'{prog}: error: too little memory ({sentence(error).splitlines()[0][:120]})', file=sys.stderr)
        return 1
