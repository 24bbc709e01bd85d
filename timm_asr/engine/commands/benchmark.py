"""Measure the speed, memory and size of models, alone or against each other."""

from ..flags import COMPILE, INFERENCE_FORM, RESULTS, SEED, pick
from ..options import Option, group, switch, value
from . import command
from .validate import AOT, FUSER

_PRECISIONS = ('amp', 'amp_bfloat16', 'float32', 'float16', 'bfloat16')

OPTIONS: list[Option] = [
    *pick('model', default='resnet50', help='registry name, hf-hub: name, folder with config.json, training '
          'checkpoint, wildcard or all'),
    *group(
        'Benchmark',
        value('--model-list', str, '', 'text file of model names, one a line', metavar='FILE'),
        value('--versus', str, None, 'more models to run in turns with the first one; the ratios of their times are '
              'printed; NAME+reparam and NAME+fold-bn name the inference forms, NAME+asr-GATE has ASR', nargs='+'),
        value('--rounds', int, 20, 'turns of --versus'),
        value('--bench', str, 'both', 'inference, train, both or profile',
              choices=('inference', 'train', 'both', 'profile')),
        switch('--detail', 'split a training step into forward, backward and optimizer'),
        switch('--no-retry', 'do not try again with smaller batches on an error'),
        value('--num-warm-iter', int, 10, 'steps before the clock starts'),
        value('--num-bench-iter', int, 40, 'measured steps'),
    ),
    *RESULTS, *pick('asr batch-size', group='Model'), *pick('img-size input-size use-train-size'),
    *pick('num-classes', help='number of classes; that of the model if unset'), *pick('gp'),
    *pick('channels-last device'),
    *group('Device', switch('--grad-checkpointing', 'recompute activations in the backward pass to save memory')),
    *pick('amp', help='mixed precision; wins over --precision'), *pick('amp-dtype'),
    *group('Device', value('--precision', str, 'float32', ', '.join(_PRECISIONS), choices=_PRECISIONS)),
    *pick('fast-norm model-kwargs'), *INFERENCE_FORM, *COMPILE,
    SEED,
    *group(
        'Training step',
        value('--opt', str, 'sgd', 'name of the optimizer'),
        value('--opt-eps', float, None, "epsilon; the optimizer's own if unset", metavar='EPSILON'),
        value('--opt-betas', float, None, "betas; the optimizer's own if unset", nargs='+', metavar='BETA'),
        value('--momentum', float, 0.9, 'momentum', metavar='M'),
        value('--weight-decay', float, 0.0001, 'weight decay'),
        value('--clip-grad', float, None, 'clip gradients to this; no clipping if unset', metavar='NORM'),
        value('--clip-mode', str, 'norm', 'how to clip: norm, value or agc', choices=('norm', 'value', 'agc')),
        value('--smoothing', float, 0.1, 'label smoothing'),
        value('--drop', float, 0.0, 'dropout rate', metavar='PCT'),
        value('--drop-path', float, None, 'rate of stochastic depth', metavar='PCT'),
        value('--drop-block', float, None, 'rate of DropBlock', metavar='PCT'),
    ),
]
#: Flags of timm's benchmark.py that are left out on purpose, each with the sentence that says so.
REFUSED = {'--fuser': FUSER, '--aot-autograd': AOT}
main = command(__name__, OPTIONS, 'bench.benchmark', REFUSED)
