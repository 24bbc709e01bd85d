"""Show how large the gradients are at the ends of the stages of networks."""

from collections.abc import Sequence

from ..options import Option, group, parse, switch, value
from .gradcam import MODELS
from .stripes import IMAGES

OPTIONS: list[Option] = [
    *MODELS,
    *group(
        'Gradients',
        value('--samples', int, 1000, 'images to use, drawn at random'),
        switch('--eval-mode', 'use the running statistics of the BatchNorms instead of those of each batch'),
    ),
    *IMAGES,
]


def main(argv: Sequence[str] | None = None, prog: str = 'timm-asr gradients') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    from .. import looking
    return looking.run(looking.gradients, args, list(argv or ()), prog)
