"""Show how little the channel weights of a network depend on the image (stripes)."""

from ..flags import DATA, IMAGE, MODEL, pick
from ..options import Option, group, switch, value
from . import command

OUTPUT: Option = value('--output', str, 'look', 'folder for PNG, CSV and JSON', '-o', metavar='FOLDER', group='Output')
#: What all commands that look at networks take.
IMAGES: list[Option] = [
    *DATA, *IMAGE, *pick('device'), OUTPUT, switch('--no-progress', 'no progress bar', group='Output')]
OPTIONS: list[Option] = [
    *MODEL,
    *group(
        'Stripes',
        value('--samples', int, 1000, 'images to measure, drawn at random'),
        value('--images', int, 64, 'images in the heat maps'),
        value('--panels', int, 4, 'gates that are drawn, from the first to the last'),
        value('--gates', str, None, 'names of the gates that are drawn, instead', nargs='+', metavar='GATE'),
        value('--checkpoints', str, '', 'folder of a run that kept its checkpoints (train --checkpoint-hist 1000): '
              'show how the weights change over its epochs', metavar='FOLDER'),
        value('--detector', str, '', 'a detector over the backbone of --model; --checkpoint is then its own',
              choices=('', 'fasterrcnn', 'maskrcnn', 'retinanet')),
    ),
    *IMAGES,
]
main = command(__name__, OPTIONS, 'looking.stripes')
