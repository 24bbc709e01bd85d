"""Write folded weights as timm loads them, and as ONNX, in int8 too, or a program of torch.export."""

from ..flags import pick
from ..options import Option, group, switch, value
from . import command

#: What to open: a checkpoint and what it does not say of itself.
SOURCE: list[Option] = group(
    'Network',
    value('checkpoint', str, None, "training checkpoint of this package or of timm's train.py, weight file, "
          'exported folder, or name of published weights', metavar='CHECKPOINT'),
    *pick('use-ema'), *pick('model', help='name of the model, where the file does not say it'),
    *pick('num-classes in-chans img-size model-kwargs'),
)
#: Images to compare on.
IMAGES: list[Option] = group(
    'Images',
    *pick('data-dir dataset split dataset-download class-map workers'), *pick('batch-size', default=64),
    *pick('mean std crop-pct interpolation device'),
    switch('--no-progress', 'no progress bar'),
)
OPTIONS: list[Option] = [
    *SOURCE,
    *group(
        'What to write',
        value('--output', str, '', 'folder for the folded weights, as timm loads it', '-o', metavar='FOLDER'),
        switch('--keep-trainable', 'also write the unfolded model, into the folder trainable inside'),
        value('--onnx', str, '', 'ONNX file of the folded network', metavar='FILE'),
        value('--int8', str, '', 'the same network in int8, quantized from the file of --onnx with norms folded and '
              'calibrated on training images', metavar='FILE'),
        value('--samples', int, 512, 'images to calibrate on, chosen at random where they can be'),
        value('--torch-export', str, '', 'program of torch.export of the inference form (.pt2)', metavar='FILE'),
        switch('--any-size', 'let the ONNX file or program take images of any size, where the network can'),
        switch('--fold-bn', 'fold each BatchNorm into its convolution in the ONNX file or program'),
        value('--labels', str, '', 'text file with the name of a class on each line, in the order of the outputs',
              metavar='FILE'),
        switch('--force', 'replace other weights or files that are there'),
    ),
    *IMAGES,
]
main = command(__name__, OPTIONS, 'exporting.export')
