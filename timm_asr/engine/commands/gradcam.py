"""Show where networks look (Grad-CAM), image by image and on average."""

from ..flags import MODEL, pick
from ..options import Option, group, value
from . import command
from .stripes import IMAGES

#: The flags of one model, for several of them.
MODELS: list[Option] = [
    *pick('model', nargs='+', default=None, help='registry names, or what else names a model'),
    *pick('checkpoint', nargs='+', default=None, help='files or folders with the weights, one for each model'),
    value('--labels', str, None, 'what the models are called in the figure', nargs='+', group='Model'),
    *(option for option in MODEL if option.key not in ('model', 'checkpoint')),
]
OPTIONS: list[Option] = [
    *MODELS,
    *group(
        'Grad-CAM',
        value('--images', int, 6, 'images to show, drawn at random'),
        value('--samples', int, 500, 'images of the average; 0 for no average'),
        value('--target', str, 'label', 'the class that is asked for', choices=('label', 'predicted')),
        value('--layer', str, '', 'module to look at; the last stage, or the last block of a transformer, if unset'),
    ),
    *IMAGES,
]
main = command(__name__, OPTIONS, 'looking.gradcam')
