"""Show how the attention of each block depends on that of the blocks before it."""

from collections.abc import Sequence

from ..flags import MODEL, SEED
from ..options import Option, group, parse, value
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


def main(argv: Sequence[str] | None = None, prog: str = 'timm-asr feature-integration') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    from .. import looking
    return looking.run(looking.integration, args, list(argv or ()), prog)
