"""The flags that commands share: one name, meaning and default everywhere.

    OPTIONS = [*MODEL, *DATA, *IMAGE, *DEVICE]                             # whole groups
    OPTIONS = group('Input', *pick('model checkpoint data-dir device'))    # or some of them, under another heading

:mod:`timm_asr.engine.inputs` makes the model and the images that they name.
"""

import os
from typing import Any

from .options import Option, group, pairs, switch, value

#: Processors that this process may use.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

MODEL = group(
    'Model',
    value('--model', str, '', 'registry name, hf-hub: name, folder with config.json, or training checkpoint', '-m'),
    value('--asr', str, None, 'ASR to put on the model: a gate (se, ie, srm, eca, spa, ...), or free, scale or scalar; '
          'a checkpoint knows its own', metavar='GATE'),
    switch('--pretrained', 'load the pretrained weights'),
    value('--checkpoint', str, '', 'file or folder with the weights', metavar='PATH'),
    switch('--use-ema', 'take the averaged weights of the checkpoint, if it has them'),
    value('--num-classes', int, None, 'number of classes; that of the weights if unset'),
    value('--gp', str, None, 'global pooling: fast, avg, max, avgmax or avgmaxc; that of the model if unset',
          metavar='POOL'),
    pairs('--model-kwargs', 'more keywords of create_model'),
)
DATA = group(
    'Data set',
    value('data', str, None, 'folder or tar of the images (the same as --data-dir)', nargs='?', metavar='DIR'),
    value('--data-dir', str, None, 'folder or tar of the images', metavar='DIR'),
    value('--dataset', str, '', 'kind and name: torch/cifar10, hfds/..., tfds/..., wds/..., digits, npz:FILE; a '
          'folder or tar if empty'),
    value('--split', str, 'validation', 'name of the split'),
    value('--num-samples', int, None, 'number of images, where an iterable set does not say'),
    switch('--dataset-download', 'let torch/, hfids/ and tfds/ sets download themselves'),
    value('--class-map', str, '', 'file that maps class names to indices', metavar='FILE'),
    value('--input-key', str, None, 'key of the images in a data set of records', metavar='KEY'),
    value('--input-img-mode', str, None, 'PIL mode of the images; RGB for 3 channels and L for others if unset',
          metavar='MODE'),
    value('--target-key', str, None, 'key of the labels in a data set of records', metavar='KEY'),
    switch('--dataset-trust-remote-code', 'let a Hugging Face data set run its own code'),
    value('--workers', int, min(4, CORES), 'processes that load images; as many as cores, at most 4, if unset', '-j'),
    value('--batch-size', int, 256, 'images per batch', '-b'),
    switch('--no-prefetcher', "normalize in the loading processes, not in timm's prefetcher"),
    switch('--pin-mem', 'pin the memory that batches are copied from'),
)
IMAGE = group(
    'Image',
    value('--in-chans', int, None, 'input channels; those of the checkpoint, or 3, if unset'),
    value('--img-size', int, None, 'side of the square input in pixels; that of the checkpoint or the model if unset'),
    value('--input-size', int, None, 'channels, height and width of the input', nargs=3),
    switch('--use-train-size', 'take the input size of training, even where the model has another for testing'),
    value('--crop-pct', float, None, 'part of the image that the centre crop keeps'),
    value('--crop-mode', str, None, 'how to crop: squash, border or center; that of the model if unset',
          metavar='MODE', choices=('squash', 'border', 'center')),
    value('--crop-border-pixels', int, None, 'pixels to crop from the border'),
    value('--mean', float, None, 'mean of the pixels, 0 to 1, per channel', nargs='+'),
    value('--std', float, None, 'standard deviation of the pixels per channel', nargs='+'),
    value('--interpolation', str, '', 'how images are resized; that of the model if empty'),
)
DEVICE = group(
    'Device',
    value('--device', str, None, 'cuda, cuda:1, mps, cpu, ...; the best one there is if unset'),
    switch('--channels-last', 'use the channels_last memory layout'),
    switch('--amp', 'mixed precision'),
    value('--amp-dtype', str, 'float16', 'low precision of --amp', choices=('float16', 'bfloat16')),
    value('--model-dtype', str, None, 'type of the whole model, without --amp; float32 if unset',
          choices=('float32', 'float16', 'bfloat16')),
    switch('--fast-norm', "use timm's faster norm layers under AMP"),
)
COMPILE = group(
    'Device',
    value('--torchcompile-mode', str, None, 'mode of torch.compile', metavar='MODE'),
    switch('--torchscript', 'script the model with torch.jit'),
    value('--torchcompile', str, None, 'compile the model, by this backend if one is named', nargs='?',
          const='inductor', metavar='BACKEND'),
)
INFERENCE_FORM = group(
    'Model',
    switch('--reparam', 'measure the inference form: attention folded, branches merged'),
    switch('--fold-bn', 'measure the inference form, with each BatchNorm folded into its convolution as well'),
)
RESULTS = group(
    'Results',
    value('--results-file', str, '', 'file to write the results to', metavar='FILE'),
    value('--results-format', str, 'csv', 'csv, json or md (Markdown)', choices=('csv', 'json', 'md')),
)
BN_NOISE = value(
    '--bn-noise', str, '', 'compute [(x - mean) / deviation * NA + NB] * weight + bias in every BatchNorm: two numbers '
    '(0.8,0.5), or drawn for each channel and step from a normal distribution of that mean and deviation '
    '(N1_0.1,N0_0.1)', metavar='NA,NB', group='Model')
SEED = value('--seed', int, 42, 'random seed', group='Device')

_SHARED = {option.name.lstrip('-'): option
           for option in (*MODEL, *DATA, *IMAGE, *DEVICE, *COMPILE, *INFERENCE_FORM, *RESULTS, BN_NOISE, SEED)}


def pick(names: str, **changes: Any) -> list[Option]:
    """The shared flags of these long names (no dashes, spaces between), with another ``default``, ``help``, ...; see
    :meth:`Option.but`.
    """
    return [_SHARED[name].but(**changes) for name in names.split()]
