"""What the user did wrong, said in one sentence instead of a traceback."""

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches


class BadInput(Exception):  # noqa: N818 - it is not the program that failed
    """An input that cannot work; its text is one sentence that names the input and what would work."""


def nearest(name: str, known: Sequence[str], count: int = 1) -> list[str]:
    """The entries of ``known`` that look most like ``name``, best first; at least one if there are any."""
    for cutoff in (0.6, 0.3, 0.0):
        found = get_close_matches(name, known, n=count, cutoff=cutoff)
        if found:
            return found
    return []


def run_main(main: Callable[[], int | None], prog: str) -> int:
    """Run a script's ``main`` and return its exit status; a ``BadInput`` becomes one line on stderr and status 2."""
    try:
        return main() or 0
    except BadInput as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 2
