"""The flags of ``python -m timm_asr export``."""

from typing import Any

from ...export.save import DTYPES
from ..options import Option


def _value(name: str, type: Any, default: Any, help: str, *aliases: str, **kwargs: Any) -> Option:
    return Option(name, aliases, type=type, default=default, help=help, **kwargs)


def _switch(name: str, help: str, **kwargs: Any) -> Option:
    return Option(name, kind='switch', help=help, **kwargs)


def _what() -> list[Option]:
    group = {'group': 'What to export'}
    return [
        _value('checkpoint', str, None, "training checkpoint of this package or of timm's train.py, weight file, "
               'exported folder, or name of published weights', metavar='CHECKPOINT', **group),
        _switch('--use-ema', 'take the averaged weights of the checkpoint', **group),
        _value('--model', str, '', 'name of the model, where the file does not say it', '-m', metavar='NAME', **group),
        _value('--num-classes', int, None, 'number of classes; that of the weights if unset', metavar='N', **group),
        _value('--in-chans', int, None, 'input channels; those of the checkpoint if unset', metavar='N', **group),
        _value('--img-size', int, None, 'side of the square input in pixels; that of the checkpoint if unset',
               metavar='N', **group),
        Option('--model-kwargs', kind='kwargs', default={}, help='more keywords of create_model', **group),
    ]


def _where() -> list[Option]:
    group = {'group': 'What to write'}
    return [
        _value('--output', str, '', 'folder for the fused weights, as timm loads it', '-o', metavar='FOLDER', **group),
        _switch('--keep-trainable', 'also write the unfused model, into the folder trainable inside', **group),
        _value('--onnx', str, '', 'ONNX file of the inference form', metavar='FILE', **group),
        _value('--torch-export', str, '', 'program of torch.export of the inference form (.pt2)', metavar='FILE',
               **group),
        _switch('--unfused', 'leave attention and branches in the ONNX file or program', **group),
        _switch('--fold-bn', 'fold each BatchNorm into its convolution in the ONNX file or program', **group),
        _value('--opset', int, None, "version of the ONNX operators; PyTorch's choice if unset", metavar='N', **group),
        _value('--dtype', str, 'float32', 'type of the weights in the folder; loaded as float32 in any case',
               choices=tuple(DTYPES), **group),
        _value('--tag', str, None, 'what the weights were trained on, for their pretrained tag; the data set if unset',
               metavar='NAME', **group),
        _value('--labels', str, '', 'text file with the name of a class on each line, in the order of the outputs',
               metavar='FILE', **group),
        _switch('--force', 'replace other weights or files that are there', **group),
    ]


def _images() -> list[Option]:
    group = {'group': 'Images to compare on'}
    return [
        _value('--data-dir', str, None, 'folder or tar of images, for the accuracy before and after', metavar='DIR',
               **group),
        _value('--dataset', str, '', 'kind and name: torch/cifar10, hfds/..., digits; a folder or tar if empty',
               metavar='NAME', **group),
        _value('--split', str, 'validation', 'name of the split', metavar='NAME', **group),
        _switch('--dataset-download', 'let the data set download itself', **group),
        _value('--class-map', str, '', 'file that maps class names to indices', metavar='FILE', **group),
        _value('--workers', int, 4, 'processes that load images', '-j', metavar='N', **group),
        _value('--batch-size', int, 64, 'images per batch', '-b', metavar='N', **group),
        _value('--mean', float, None, 'mean of the pixels; that of the checkpoint if unset', nargs='+', metavar='MEAN',
               **group),
        _value('--std', float, None, 'standard deviation of the pixels', nargs='+', metavar='STD', **group),
        _value('--crop-pct', float, None, 'part of the image that the centre crop keeps', metavar='PCT', **group),
        _value('--interpolation', str, '', 'how images are resized', metavar='NAME', **group),
        _value('--device', str, None, 'where to compare; the best one there is if unset', **group),
        _switch('--no-progress', 'no progress bar', **group),
    ]


EXPORT_OPTIONS: list[Option] = [*_what(), *_where(), *_images()]
