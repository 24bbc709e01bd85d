"""Draw the training curves of several runs in one figure."""

from collections.abc import Sequence

from ..options import Option, parse, value
from .stripes import OUTPUT

OPTIONS: list[Option] = [
    value('runs', str, [], 'folders of runs, each with a summary.csv', nargs='+', metavar='RUN'),
    value('--labels', str, None, 'what the runs are called; their models if unset', nargs='+'),
    value('--title', str, '', 'text above the figure'),
    OUTPUT,
]


def main(argv: Sequence[str] | None = None, prog: str = 'timm-asr curves') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    from .. import runs
    return runs.curves(args, list(argv or ()), prog)
