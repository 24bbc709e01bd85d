"""Checkpoints as this package's engine and timm's script write them, without training; and a line of ``timm-asr``."""

import argparse

import torch
from helpers import clone, randomize

import timm_asr
from timm_asr.engine.commands import dispatch
from timm_asr.engine.commands.train import parse_args
from timm_asr.engine.options import plain_options

SECRET = 'hf_' + 'a' * 30


def digits_model():
    model = timm_asr.create_model('resnet20_asr_se', num_classes=10, in_chans=1, layers=(1, 1, 1))
    return randomize(model).eval()


def our_checkpoint(path, model, average=None, argv=(), **more):
    """A checkpoint of ``train.py --config digits`` with this model in it."""
    args = parse_args(['--config', 'digits', '--data-dir', str(path.parent), '--output', str(path.parent),
                       '--log-wandb', '--wandb-tags', SECRET, *argv])
    content = {
        'arch': 'resnet20_asr_se', 'epoch': 7, 'state_dict': model.state_dict(), 'args': plain_options(vars(args)) | {
            'model_kwargs': {'layers': [1, 1, 1]} if len(model.layer1) == 1 else {}},
        'metric': 91.5, 'made_by': {'package_version': '0.0.1', 'timm_version': '1.0.30', 'torch_version': '2.9',
                                    'git_commit': 'c0ffee'},
        'label_names': [f'digit {i}' for i in range(10)], 'optimizer': {}, 'version': 2, **more}
    if average is not None:
        content['state_dict_ema'] = average.state_dict()
    torch.save(content, path)
    return path


def timm_checkpoint(path, model, average):
    """A checkpoint of timm's ``train.py``: its options are a Namespace, its keys may come from DDP."""
    args = argparse.Namespace(
        model='resnet18_asr_se', num_classes=None, in_chans=None, img_size=48, input_size=None, gp=None, mean=[0.4],
        std=None, crop_pct=0.8, interpolation='bilinear', model_kwargs={}, data_dir=str(path.parent), dataset='',
        seed=3, lr=0.01, config='', eval_metric='top1', local_rank=0, device_modules=['timm_asr'])
    torch.save({'epoch': 4, 'arch': 'resnet18_asr_se', 'optimizer': {}, 'version': 2, 'args': args, 'metric': 55.0,
                'state_dict': {f'module.{key}': value for key, value in model.state_dict().items()},
                'state_dict_ema': average.state_dict()}, path)
    return path


def nudged(model):
    """The model with other weights of the same keys."""
    return randomize(clone(model), seed=9)


def command(capsys, *words):
    """(status, standard output, standard error) of a line of ``timm-asr``."""
    status = dispatch([str(word) for word in words], 'timm-asr')
    return status, *capsys.readouterr()
