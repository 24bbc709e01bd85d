"""Show how the attention of each block depends on that of the blocks before it."""

from ..flags import MODEL, SEED
from ..options import Option, group, value
from . import command
from .stripes import IMAGES

OPTIONS: list[Option] = [
    *MODEL,
    *group(
        'Random forests',
        value('--samples', int, 1000, 'images to use, drawn at random'),
        value('--channels', int, None, 'channels to use of each block; all, which is slow beyond 32, if unset'),
        value('--trees', int, 100, 'trees of each forest'),
        value('--jobs', int, -1, 'processes, -1 for all processors'),
    ),
    SEED,
    *IMAGES,
]
main = command(__name__, OPTIONS, 'looking.integration')
