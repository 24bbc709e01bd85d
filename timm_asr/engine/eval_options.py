"""The flags of ``validate.py`` and ``benchmark.py``: timm's names, meanings and defaults, then our own few."""

from typing import Any

from .options import Option


def _value(name: str, type: Any, default: Any, help: str, *aliases: str, **kwargs: Any) -> Option:
    return Option(name, aliases, type=type, default=default, help=help, **kwargs)


def _switch(name: str, help: str, **kwargs: Any) -> Option:
    return Option(name, kind='switch', help=help, **kwargs)


def _input_size(group: str) -> list[Option]:
    return [
        _value('--img-size', int, None, 'side of the square input in pixels; that of the model if unset', metavar='N',
               group=group),
        _value('--input-size', int, None, 'channels, height and width of the input', nargs=3, metavar='N', group=group),
        _switch('--use-train-size', 'take the input size of training, even where the model has another for testing',
                group=group),
    ]


def _compile(group: str) -> list[Option]:
    script = {'exclusive': 'script', 'group': group}
    return [
        _value('--torchcompile-mode', str, None, 'mode of torch.compile', metavar='MODE', group=group),
        _switch('--torchscript', 'script the model with torch.jit', **script),
        _value('--torchcompile', str, None, 'compile the model, by this backend if one is named', nargs='?',
               const='inductor', metavar='BACKEND', **script),
    ]


def _asr(group: str) -> Option:
    return _value('--asr', str, None, 'gate of ASR to put on the model of --model: se, ie, srm, eca, spa, ...; a '
                  'checkpoint knows its own', metavar='GATE', group=group)


def _inference_form(group: str) -> list[Option]:
    return [
        _switch('--reparam', 'measure the inference form: attention folded, branches merged', group=group),
        _switch('--fold-bn', 'measure the inference form, with each BatchNorm folded into its convolution as well',
                group=group),
    ]


def _validate_data() -> list[Option]:
    group = {'group': 'Data set'}
    return [
        _value('data', str, None, 'folder or tar of the images (the same as --data-dir)', nargs='?', metavar='DIR',
               **group),
        _value('--data-dir', str, None, 'folder or tar of the images', metavar='DIR', **group),
        _value('--dataset', str, '', 'kind and name: torch/cifar10, hfds/..., tfds/..., wds/..., digits; '
               'a folder or tar if empty', metavar='NAME', **group),
        _value('--split', str, 'validation', 'name of the split', metavar='NAME', **group),
        _value('--num-samples', int, None, 'number of images, where an iterable set does not say', metavar='N',
               **group),
        _switch('--dataset-download', 'let torch/, hfids/ and tfds/ sets download themselves', **group),
        _value('--class-map', str, '', 'file that maps class names to indices', metavar='FILE', **group),
        _value('--input-key', str, None, 'key of the images in a data set of records', metavar='KEY', **group),
        _value('--input-img-mode', str, None, 'PIL mode of the images; RGB for 3 channels and L for others if unset',
               metavar='MODE', **group),
        _value('--target-key', str, None, 'key of the labels in a data set of records', metavar='KEY', **group),
        _switch('--dataset-trust-remote-code', 'let a Hugging Face data set run its own code', **group),
        _value('--workers', int, 4, 'processes that load images', '-j', metavar='N', **group),
        _value('--batch-size', int, 256, 'images per batch', '-b', metavar='N', **group),
        _switch('--no-prefetcher', "normalize in the loading processes, not in timm's prefetcher", **group),
        _switch('--pin-mem', 'pin the memory that batches are copied from', **group),
        _switch('--tf-preprocessing', "use TensorFlow's preprocessing, which must be installed", **group),
    ]


def _validate_image() -> list[Option]:
    group = {'group': 'Image'}
    return [
        _value('--in-chans', int, None, 'input channels; 3 if unset', metavar='N', **group),
        *_input_size('Image'),
        _value('--crop-pct', float, None, 'part of the image that the centre crop keeps', metavar='PCT', **group),
        _value('--crop-mode', str, None, 'how to crop: squash, border or center; that of the model if unset',
               metavar='MODE', choices=('squash', 'border', 'center'), **group),
        _value('--crop-border-pixels', int, None, 'pixels to crop from the border', metavar='N', **group),
        _value('--mean', float, None, 'mean of the pixels, 0 to 1, per channel', nargs='+', metavar='MEAN', **group),
        _value('--std', float, None, 'standard deviation of the pixels per channel', nargs='+', metavar='STD',
               **group),
        _value('--interpolation', str, '', 'how images are resized; that of the model if empty', metavar='NAME',
               **group),
    ]


def _validate_model() -> list[Option]:
    group = {'group': 'Model'}
    return [
        _value('--model', str, 'dpn92', 'registry name, hf-hub: name, fused folder, training checkpoint, wildcard, '
               'all, or a text file of names', '-m', metavar='NAME', **group),
        _asr('Model'),
        _switch('--pretrained', 'load the pretrained weights (always, where no checkpoint is named)', **group),
        _value('--checkpoint', str, '', 'weight file, fused folder, or a folder whose every .pth and .pth.tar is '
               'validated', metavar='PATH', **group),
        _switch('--use-ema', 'take the averaged weights of the checkpoint, if it has them', **group),
        _value('--num-classes', int, None, 'number of classes; that of the weights if unset', metavar='N', **group),
        _value('--gp', str, None, 'global pooling: fast, avg, max, avgmax or avgmaxc; that of the model if unset',
               metavar='POOL', **group),
        Option('--model-kwargs', kind='kwargs', default={}, help='more keywords of create_model', **group),
        _switch('--test-pool', 'pool at test time over larger images (test-time pooling)', **group),
        *_inference_form('Model'),
    ]


def _validate_running() -> list[Option]:
    group = {'group': 'Running'}
    return [
        _value('--device', str, None, 'cuda, cuda:1, mps, cpu, ...; the best one there is if unset', **group),
        _value('--num-gpu', int, 1, 'GPUs to use, by DataParallel', metavar='N', **group),
        _switch('--channels-last', 'use the channels_last memory layout', **group),
        _switch('--amp', 'mixed precision', **group),
        _value('--amp-dtype', str, 'float16', 'low precision of --amp', choices=('float16', 'bfloat16'), **group),
        _value('--model-dtype', str, None, 'type of the whole model, without --amp; float32 if unset',
               choices=('float32', 'float16', 'bfloat16'), **group),
        _switch('--fast-norm', "use timm's faster norm layers under AMP", **group),
        *_compile('Running'),
        _value('--log-freq', int, 10, 'batches between log lines', metavar='N', **group),
        _switch('--retry', 'on an error, such as too little memory, try again with smaller batches', **group),
        _value('--seed', int, 42, 'random seed', metavar='S', **group),
        _value('--results-file', str, '', 'file to write the results to', metavar='FILE', **group),
        _value('--results-format', str, 'csv', 'csv, json or md (Markdown)', choices=('csv', 'json', 'md'), **group),
        _value('--real-labels', str, '', 'JSON file of the ImageNet Real labels to count instead', metavar='FILE',
               **group),
        _value('--valid-labels', str, '', 'text file of the class indices that count, one a line', metavar='FILE',
               **group),
        _value('--metrics-avg', str, None, 'also give precision, recall and F1, averaged so over classes',
               choices=('micro', 'macro', 'weighted'), **group),
    ]


def _benchmark_what() -> list[Option]:
    group = {'group': 'Benchmark'}
    return [
        _value('--model', str, 'resnet50', 'registry name, hf-hub: name, fused folder, training checkpoint, wildcard '
               'or all', '-m', metavar='NAME', **group),
        _value('--model-list', str, '', 'text file of model names, one a line', metavar='FILE', **group),
        _value('--versus', str, None, 'more models to run in turns with the first one; the ratios of their times are '
               'printed; NAME+reparam and NAME+fold-bn name the inference forms, NAME+asr-GATE has ASR', nargs='+',
               metavar='NAME', **group),
        _value('--rounds', int, 20, 'turns of --versus', metavar='N', **group),
        _value('--bench', str, 'both', 'inference, train, both or profile',
               choices=('inference', 'train', 'both', 'profile'), **group),
        _switch('--detail', 'split a training step into forward, backward and optimizer', **group),
        _switch('--no-retry', 'do not try again with smaller batches on an error', **group),
        _value('--num-warm-iter', int, 10, 'steps before the clock starts', metavar='N', **group),
        _value('--num-bench-iter', int, 40, 'measured steps', metavar='N', **group),
        _value('--results-file', str, '', 'file to write the results to', metavar='FILE', **group),
        _value('--results-format', str, 'csv', 'csv, json or md (Markdown)', choices=('csv', 'json', 'md'), **group),
        _value('--device', str, None, 'cuda, cuda:1, mps, cpu, ...; the best one there is if unset', **group),
        _value('--seed', int, 42, 'random seed', metavar='S', **group),
    ]


def _benchmark_model() -> list[Option]:
    group = {'group': 'Model'}
    return [
        _asr('Model'),
        _value('--batch-size', int, 256, 'images per batch', '-b', metavar='N', **group),
        *_input_size('Model'),
        _value('--num-classes', int, None, 'number of classes; that of the model if unset', metavar='N', **group),
        _value('--gp', str, None, 'global pooling: fast, avg, max, avgmax or avgmaxc; that of the model if unset',
               metavar='POOL', **group),
        _switch('--channels-last', 'use the channels_last memory layout', **group),
        _switch('--grad-checkpointing', 'recompute activations in the backward pass to save memory', **group),
        _switch('--amp', 'mixed precision; wins over --precision', **group),
        _value('--amp-dtype', str, 'float16', 'low precision of --amp', choices=('float16', 'bfloat16'), **group),
        _value('--precision', str, 'float32', 'amp, amp_bfloat16, float32, float16, bfloat16 or tf32',
               choices=('amp', 'amp_bfloat16', 'float32', 'float16', 'bfloat16', 'tf32'), **group),
        _switch('--fast-norm', "use timm's faster norm layers under AMP", **group),
        Option('--model-kwargs', kind='kwargs', default={}, help='more keywords of create_model', **group),
        *_inference_form('Model'),
        *_compile('Model'),
    ]


def _benchmark_train() -> list[Option]:
    group = {'group': 'Training step'}
    return [
        _value('--opt', str, 'sgd', 'name of the optimizer', metavar='NAME', **group),
        _value('--opt-eps', float, None, "epsilon; the optimizer's own if unset", metavar='EPSILON', **group),
        _value('--opt-betas', float, None, "betas; the optimizer's own if unset", nargs='+', metavar='BETA', **group),
        _value('--momentum', float, 0.9, 'momentum', metavar='M', **group),
        _value('--weight-decay', float, 0.0001, 'weight decay', **group),
        _value('--clip-grad', float, None, 'clip gradients to this; no clipping if unset', metavar='NORM', **group),
        _value('--clip-mode', str, 'norm', 'how to clip: norm, value or agc', choices=('norm', 'value', 'agc'),
               **group),
        _value('--smoothing', float, 0.1, 'label smoothing', **group),
        _value('--drop', float, 0.0, 'dropout rate', metavar='PCT', **group),
        _value('--drop-path', float, None, 'rate of stochastic depth', metavar='PCT', **group),
        _value('--drop-block', float, None, 'rate of DropBlock', metavar='PCT', **group),
    ]


VALIDATE_OPTIONS: list[Option] = [
    *_validate_data(), *_validate_image(), *_validate_model(), *_validate_running()]
BENCHMARK_OPTIONS: list[Option] = [*_benchmark_what(), *_benchmark_model(), *_benchmark_train()]

_FUSER = "PyTorch's JIT fusers are superseded; use --torchcompile"
_AOT = 'it hands the graph to a JIT fuser, which is superseded; use --torchcompile, or --torchcompile aot_eager'
_NAFLEX = "NaFlex loading is not part of this engine; use `python -m timm_asr run TIMM/validate.py`"

#: Flags of timm's validate.py that are left out on purpose, each with the sentence that says so.
VALIDATE_REFUSED: dict[str, str] = {
    '--fuser': _FUSER,
    '--aot-autograd': _AOT,
    '--naflex-loader': _NAFLEX,
    '--naflex-max-seq-len': _NAFLEX,
}
#: The same for timm's benchmark.py.
BENCHMARK_REFUSED: dict[str, str] = {'--fuser': _FUSER, '--aot-autograd': _AOT}
