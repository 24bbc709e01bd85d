"""Replace a trained network's gates by their mean weights, and say what that costs."""

from ..options import Option, group, switch, value
from . import command
from .export import IMAGES, SOURCE

OPTIONS: list[Option] = [
    *group(
        'Freezing',
        value('--output', str, '', 'folder for the frozen network and the report; nothing is written without', '-o',
              metavar='FOLDER'),
        value('--threshold', float, None, 'leave gates whose deviation over images, averaged over channels, exceeds '
              'this', metavar='STD'),
        switch('--recalibrate-bn', 'estimate the statistics of the BatchNorms anew afterwards'),
        value('--samples', int, None, 'images to use, chosen at random where they can be; all if unset'),
        value('--eval-split', str, '', 'name of the split to compare logits and accuracy on; that of --split if empty'),
        value('--thresholds', int, 5, 'also say what so many thresholds would cost; 0 for none'),
        switch('--force', 'replace other weights that are there'),
    ),
    *SOURCE, *IMAGES,
]
main = command(__name__, OPTIONS, 'exporting.freeze')
