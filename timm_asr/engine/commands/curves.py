"""Draw the training curves of several runs in one figure."""

from ..options import Option, value
from . import command
from .stripes import OUTPUT

OPTIONS: list[Option] = [
    value('runs', str, [], 'folders of runs, each with a summary.csv', nargs='+', metavar='RUN'),
    value('--labels', str, None, 'what the runs are called; their models if unset', nargs='+'),
    value('--title', str, '', 'text above the figure'),
    OUTPUT,
]
main = command(__name__, OPTIONS, 'runs.curves')
