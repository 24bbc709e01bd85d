"""Draw speed against accuracy, from a benchmark and the runs of the same models."""

from ..options import Option, value
from . import command
from .stripes import OUTPUT

OPTIONS: list[Option] = [
    value('runs', str, [], 'folders of runs, or result files of validate (CSV or JSON)', nargs='+', metavar='RUN'),
    value('--benchmark', str, '', 'results file of `timm-asr benchmark` (CSV or JSON) with the same models',
          metavar='FILE'),
    value('--title', str, '', 'text above the figure'),
    OUTPUT,
]
main = command(__name__, OPTIONS, 'runs.scatter')
