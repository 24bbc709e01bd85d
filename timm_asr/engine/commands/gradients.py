"""Show how large the gradients are at the ends of the stages of networks."""

from ..options import Option, group, switch, value
from . import command
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
main = command(__name__, OPTIONS, 'looking.gradients')
