"""Measure the accuracy of models on a data set."""

from ..flags import BN_NOISE, COMPILE, DATA, DEVICE, IMAGE, INFERENCE_FORM, MODEL, RESULTS, SEED, pick
from ..options import Option, group, switch, value
from . import command

OPTIONS: list[Option] = [
    *DATA, *IMAGE,
    *pick('model', help='registry name, hf-hub: name, folder with config.json, training '
          'checkpoint, wildcard, all, or a text file of names'),
    *(option for option in MODEL if option.key not in ('model', 'checkpoint', 'pretrained')),
    *pick('pretrained', help='load the pretrained weights (always, where no checkpoint is named)'),
    *pick('checkpoint', help='weight file, folder with config.json, or a folder whose every .pth and .pth.tar is '
          'validated'),
    *group('Model', switch('--test-pool', 'pool at test time over larger images (test-time pooling)')), *INFERENCE_FORM,
    BN_NOISE,
    *DEVICE, *COMPILE,
    SEED,
    *group(
        'Running',
        value('--num-gpu', int, 1, 'GPUs to use, by DataParallel'),
        value('--log-freq', int, 10, 'batches between log lines'),
        switch('--retry', 'on an error, such as too little memory, try again with smaller batches'),
    ),
    *RESULTS,
    *group(
        'Results',
        value('--real-labels', str, '', 'JSON file of the ImageNet Real labels to count instead', metavar='FILE'),
        value('--valid-labels', str, '', 'text file of the class indices that count, one a line', metavar='FILE'),
        switch('--per-class', 'also print the accuracy of each class'),
        value('--metrics-avg', str, None, 'also give precision, recall and F1, averaged so over classes',
              choices=('micro', 'macro', 'weighted')),
    ),
]
FUSER = "PyTorch's JIT fusers are superseded; use --torchcompile"
AOT = 'it hands the graph to a JIT fuser, which is superseded; use --torchcompile, or --torchcompile aot_eager'
_NOT_HERE = 'it is not part of this engine; use `timm-asr run TIMM/validate.py`'
#: Flags of timm's validate.py that are left out on purpose, each with the sentence that says so.
REFUSED = {'--fuser': FUSER, '--aot-autograd': AOT, '--naflex-*': _NOT_HERE, '--tf-preprocessing': _NOT_HERE}
main = command(__name__, OPTIONS, 'validation.main', REFUSED)
