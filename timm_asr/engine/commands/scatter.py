"""Draw speed against accuracy, from a benchmark and the runs of the same models."""

from collections.abc import Sequence

from ..options import Option, parse, value
from .stripes import OUTPUT

OPTIONS: list[Option] = [
    value('runs', str, [], 'folders of runs, or result files of validate (CSV or JSON)', nargs='+', metavar='RUN'),
    value('--benchmark', str, '', 'results file of `timm-asr benchmark` (CSV or JSON) with the same models',
          metavar='FILE'),
    value('--title', str, '', 'text above the figure'),
    OUTPUT,
]


def main(argv: Sequence[str] | None = None, prog: str = 'timm-asr scatter') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    from .. import runs
    return runs.scatter(args, list(argv or ()), prog)
