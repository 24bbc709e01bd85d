"""From options to model, loss, optimizer and schedule, on timm's factories."""

import argparse
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

from ..asr.sites import known_sites
from ..asr.wrapper import ASR
from ..checkpoints.find import FOLDER_PREFIX, HUB_PREFIXES, check_model_name
from ..checkpoints.names import WEIGHTS
from ..checkpoints.open import attached_in
from ..checkpoints.read import first_line, read_checkpoint, read_config
from ..checkpoints.weights import averaged_in, load_weights, state_dict_of
from ..errors import BadInput, nearest
from ..models.auxiliary import auxiliary_loss
from ..models.create import create_model
from ..models.registry import variant_of
from .device import processes

_logger = logging.getLogger(__name__)


def title_of(args: argparse.Namespace) -> str:
    """The model as a run calls it: its name, and the ASR that the options put on it."""
    return f'{args.model}_asr_{args.asr}' if args.asr else args.model


def check_model(args: argparse.Namespace) -> None:
    """Raise ``BadInput``, with the nearest names, unless there is such a model."""
    if args.model.startswith(FOLDER_PREFIX):
        folder = args.model.removeprefix(FOLDER_PREFIX)
        config = read_config(folder)
        if gate := attached_in(config).get('asr'):  # timm would leave the ASR out without a word
            raise BadInput(f'{args.model} has ASR, which is not in the name of its network; this goes on with it: '
                           f'--model {config["architecture"]} --asr {gate} --initial-checkpoint '
                           f'{Path(folder) / WEIGHTS}')
    elif not args.model.startswith(HUB_PREFIXES):
        check_model_name(args.model)


def build_model(args: argparse.Namespace, weights: bool = True) -> nn.Module:
    """The model that the options of ``train.py`` name, on the CPU in float32, not yet converted, compiled or wrapped;
    without ``weights``, neither pretrained ones nor an initial checkpoint are loaded. BadInput for an unknown model
    (with the nearest names), options that it does not take, or weights that do not fit it.
    """
    check_model(args)
    variant = variant_of(args.model)
    keywords: dict[str, Any] = {
        'num_classes': args.num_classes, 'drop_rate': args.drop,
        'drop_path_rate': args.drop_connect if args.drop_path is None else args.drop_path,
        'drop_block_rate': args.drop_block, 'global_pool': args.gp, 'bn_momentum': args.bn_momentum,
        'bn_eps': args.bn_eps, 'scriptable': args.torchscript, 'asr': args.asr,
        'last_norm_init': args.last_norm_init}
    pretrained = weights and bool(args.pretrained or args.pretrained_path)
    if args.pretrained_path and weights:
        if _has_vectors(args.pretrained_path) and not (variant and variant.asr):
            raise BadInput(f'--pretrained-path {args.pretrained_path} has ASR vectors, for which {args.model} has no '
                           'place: name the folded weights, the model.safetensors of its run or of timm-asr export')
        keywords['pretrained_cfg_overlay'] = {'file': args.pretrained_path, 'num_classes': -1}
    if args.initial_checkpoint and args.last_norm_init is not None:
        raise BadInput('--last-norm-init is where training starts, and --initial-checkpoint brings its own weights')
    shape = {'in_chans': args.in_chans, 'img_size': args.img_size, 'input_size': args.input_size}
    try:
        resolved = resolve_model_input_args(args.model, shape, **{**keywords, **args.model_kwargs})
        model = create_model(**resolved, pretrained=pretrained)
    except LocalEntryNotFoundError:
        raise BadInput(f'the weights of {args.model} are not on this machine, and the Hub cannot be reached; '
                       '--pretrained-path FILE takes them from a file') from None
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, OSError) as error:
        if pretrained and variant is not None and variant.asr and isinstance(error, RuntimeError):
            path = f'--pretrained-path {args.pretrained_path}' if args.pretrained_path else '--pretrained'
            raise BadInput(f'{args.model} cannot start from plain weights by its name; this does: --model '
                           f'{variant.without("asr")} --asr {variant.asr} {path}') from None
        raise BadInput(f'{title_of(args)} cannot be made with these options: {first_line(error)}') from None
    if pretrained:
        known = (getattr(model, 'pretrained_cfg', None) or {}).get('num_classes')
        _logger.info('The classifier is that of the weights.' if known == model.num_classes else
                     f'The classifier is new, with {model.num_classes} outputs.')
    if weights:
        _start_weights(model, args)
    return model


def _has_vectors(path: str) -> bool:
    """Whether a file of weights has ASR vectors; BadInput says what is wrong with the file, if anything is."""
    content = read_checkpoint(path)
    with suppress(BadInput):  # the weights lie where timm finds them: under 'module', as EVA's do, say
        return any('.vectors.' in key for key in state_dict_of(content, averaged_in(content) is not None))
    return False


def build_on_meta(args: argparse.Namespace) -> nn.Module:
    """The model without memory for its weights; fills in ``args.lr`` as the run of these options would."""
    args.world_size = processes()[1]
    with torch.device('meta'):
        model = build_model(args, weights=False)
    resolve_learning_rate(args, args.batch_size)
    return model


@torch.no_grad()
def _start_weights(model: nn.Module, args: argparse.Namespace) -> None:
    if path := args.initial_checkpoint:
        content = read_checkpoint(path)
        averaged = averaged_in(content) is not None  # which timm takes too
        found = state_dict_of(content, averaged, path, model.state_dict())
        _logger.info(f'{path}: {"averaged" if averaged else "raw"} weights.')
        if args.asr and not any('.vectors.' in key for key in found):
            raise BadInput(f'--initial-checkpoint {path} has no ASR vectors; --pretrained-path {path} puts ASR on '
                           'plain weights')
        load_weights(model, path, found, args.model)
    heads = model.get_classifier()  # type: ignore[operator]
    for head in heads if isinstance(heads, tuple) else (heads,):  # a distilled network has two
        if args.head_init_scale is not None:
            for parameter in head.parameters():
                parameter.mul_(args.head_init_scale)
        if args.head_init_bias is not None:
            nn.init.constant_(head.bias, args.head_init_bias)


def prepare_model(model: nn.Module, args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Put a new model on the device in the asked type and layout, with the norm layers asked for."""
    if args.sync_bn and (args.split_bn or args.torchscript):
        raise BadInput('--sync-bn goes neither with --split-bn nor with --torchscript')
    if args.split_bn and args.aug_splits < 2 and not args.resplit:
        raise BadInput('--split-bn needs --aug-splits of at least 2, or --resplit')
    if args.grad_checkpointing:
        checkpoint_gradients(model, args.model)
    if args.split_bn:
        if any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
            raise BadInput(f'--split-bn splits norms of images, and {title_of(args)} has norms of vectors')
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if args.sync_bn and args.distributed:
        args.dist_bn = ''  # there is nothing left to distribute
        model = convert_sync_batchnorm(model)
    return torch.jit.script(model) if args.torchscript else model


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """``--grad-checkpointing``; ``BadInput`` where the model has none."""
    try:
        model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise BadInput(f'{name} has no gradient checkpointing (--grad-checkpointing)') from None


def make_loss(args: argparse.Namespace, mixing: bool) -> nn.Module:
    """The training loss, chosen as timm chooses it."""
    if args.jsd_loss:
        if args.aug_splits < 2:
            raise BadInput('--jsd-loss needs --aug-splits of at least 2')
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    bce = {'target_threshold': args.bce_target_thresh, 'sum_classes': args.bce_sum, 'pos_weight': args.bce_pos_weight}
    if args.bce_loss:
        return BinaryCrossEntropy(smoothing=args.smoothing, **bce)
    if mixing:  # which smooths the labels itself
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


class Task(ClassificationTask):
    """timm's classification task; a model's auxiliary terms, if it has any, are added to the loss."""

    def __init__(self, model: nn.Module, criterion: nn.Module, device: torch.device, dtype: Any = None) -> None:
        super().__init__(model=model, criterion=criterion, device=device, dtype=dtype, verbose=False)
        # Asked once: a model without such terms pays nothing for them later.
        self.has_auxiliary = bool(auxiliary_loss(model).requires_grad)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        result = super().forward(input, target)
        if self.has_auxiliary:
            result['loss'] = result['loss'] + auxiliary_loss(unwrap_model(self.trainable_module))
        return result


def resolve_learning_rate(args: argparse.Namespace, batch_size: float) -> None:
    """Fill in ``args.lr`` from ``--lr-base`` and the global batch, as timm does; ``batch_size`` is per process."""
    if args.lr:
        return
    total = batch_size * args.world_size * args.grad_accum_steps
    ratio = total / args.lr_base_size
    scale = args.lr_base_scale or ('sqrt' if any(name in args.opt.lower() for name in ('ada', 'lamb')) else 'linear')
    args.lr_base_scale = scale
    args.lr = args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
    _logger.info(f'Learning rate {args.lr:.6g}: base {args.lr_base} times the {scale} ratio of {total:g} images to '
                 f'{args.lr_base_size}.')


def parameter_groups(model: nn.Module, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Groups with their weight decay, and a factor of the learning rate (``lr_scale``) on sites of ASR and on psi."""
    if args.decay_all:
        groups = [{'params': [p for p in model.parameters() if p.requires_grad], 'weight_decay': args.weight_decay}]
    else:
        keep: set[str] = getattr(model, 'no_weight_decay', set)()
        groups = param_groups_weight_decay(model, args.weight_decay, no_weight_decay_list=keep)
    factors: dict[int, float] = {}  # by parameter
    if args.site_lr is not None:
        layers = [module.layer for module in model.modules() if isinstance(module, ASR)]
        layers = layers or [model.get_submodule(name) for name in known_sites(model)]
        factors |= {id(parameter): args.site_lr for layer in layers for parameter in layer.parameters()}
    if args.psi_lr is not None:
        factors |= {id(p): args.psi_lr for name, p in model.named_parameters() if name.endswith('.psi')}
    found = []
    for group in groups:
        for factor in dict.fromkeys(factors.get(id(parameter), 1.0) for parameter in group['params']):
            own = [parameter for parameter in group['params'] if factors.get(id(parameter), 1.0) == factor]
            found.append({**group, 'params': own, **({} if factor == 1 else {'lr_scale': factor})})
    return found


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """timm's optimizer of that name, with layer decay and without weight decay on vectors, as timm does both."""
    name = args.opt.lower()
    names = set(list_optimizers())
    if name.removeprefix('lookahead_') not in names:
        raise BadInput(f'unknown optimizer {args.opt!r} (--opt); the nearest are '
                       f'{", ".join(nearest(name, sorted(names), 3))}')
    if args.sched == 'none' and (args.site_lr, args.psi_lr, args.layer_decay) != (None, None, None):
        raise BadInput('--site-lr, --psi-lr and --layer-decay work by a schedule, which --sched none is not')
    keywords = {**optimizer_kwargs(cfg=args), **args.opt_kwargs}
    if args.decay_all or args.site_lr is not None or args.psi_lr is not None:
        if args.layer_decay is not None:
            raise BadInput('--layer-decay excludes --decay-all, --site-lr and --psi-lr: each groups the parameters')
        keywords['param_group_fn'] = partial(parameter_groups, args=args)
    try:
        return create_optimizer_v2(model, **keywords)
    except (TypeError, ValueError, AssertionError, IndexError) as error:
        raise BadInput(f'--opt {args.opt} cannot be made with these options: {first_line(error)}') from None


def make_schedule(optimizer: torch.optim.Optimizer, args: argparse.Namespace, updates_per_epoch: int,
                  decreasing: bool = False) -> tuple[Any, int]:
    """timm's schedule of that name, or None, and the epochs of the run; ``decreasing``: a lower metric is better."""
    try:
        return create_scheduler_v2(optimizer, **scheduler_kwargs(args, decreasing_metric=decreasing),
                                   updates_per_epoch=updates_per_epoch)
    except (TypeError, ValueError, AssertionError) as error:
        raise BadInput(f'--sched {args.sched} cannot be made with these options: {first_line(error)}') from None
