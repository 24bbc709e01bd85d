"""Scaling the output channels of a layer by scaling its parameters.

A layer whose output is affine in its own parameters, channel by channel, satisfies layer(x; w, b) * v =
layer(x; v * w, v * b), in training mode and for every gradient too. So attention that does not depend on the input
needs neither a pass over the feature map nor anything saved for the backward pass.
"""

from collections.abc import Mapping
from typing import Any

import timm.layers as tl
import timm.layers.norm as norm
import timm.layers.norm_act as norm_act
import timm.models.fastvit as fastvit
import timm.models.metaformer as metaformer
import timm.models.swiftformer as swiftformer
import torch
from timm.layers import FrozenBatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.func import functional_call
from torchvision.ops.misc import FrozenBatchNorm2d

from ..gates.fused import is_hooked
from .blocks import facts_of

_WEIGHT_BIAS = ('weight', 'bias')
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_SCALES = (tl.LayerScale, tl.LayerScale2d, fastvit.LayerScale2d, swiftformer.LayerScale2d)

# Exact types, since a subclass may do anything with its weight (a weight-standardised convolution divides a scale
# out again, unless it has a gain). The value names the tensors whose first dimension is the output channel (the second
# of a transposed convolution's weight), the one that must be there first.
SCALABLE: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d, tl.SplitBatchNorm2d,
        nn.LayerNorm, tl.LayerNorm, tl.LayerNormFp32, tl.LayerNorm2d, tl.LayerNorm2dFp32, nn.GroupNorm, tl.GroupNorm,
        tl.GroupNorm1, norm.LayerNormExp2d, nn.RMSNorm, tl.RmsNorm, tl.RmsNorm2d, norm.RmsNormFp32, norm.RmsNorm2dFp32,
        tl.EvoNorm2dS0, tl.EvoNorm2dS0a, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.Linear, tl.Linear,
        nn.Conv1d, nn.Conv2d, nn.Conv3d, tl.Conv2dSame, *_TRANSPOSED), _WEIGHT_BIAS),
    **dict.fromkeys((
        tl.SimpleNorm, tl.SimpleNorm2d, norm.SimpleNormFp32, norm.SimpleNorm2dFp32, metaformer.GroupNorm1NoBias,
        metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias), ('weight',)),
    **dict.fromkeys((tl.ScaledStdConv2d, tl.ScaledStdConv2dSame), ('gain', 'bias')),
    **dict.fromkeys(LAYER_SCALES, ('gamma',))}
# These apply an activation after the scale, so multiplying their output is not the same as scaling them.
WITH_ACTIVATION: tuple[type[nn.Module], ...] = (
    tl.BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d, tl.SplitBatchNorm2d, tl.GroupNormAct,
    norm_act.GroupNorm1Act, tl.LayerNormAct, norm_act.LayerNormActFp32, tl.LayerNormAct2d, norm_act.LayerNormAct2dFp32,
    norm_act.RmsNormAct, norm_act.RmsNormActFp32, norm_act.RmsNormAct2d, norm_act.RmsNormAct2dFp32)
SCALABLE |= dict.fromkeys(WITH_ACTIVATION, _WEIGHT_BIAS)
# Channels are the last dimension of these layers' output, the second of all others'.
_CHANNELS_LAST = (
    nn.LayerNorm, tl.LayerNorm, tl.LayerNormFp32, tl.LayerNormAct, norm_act.LayerNormActFp32, nn.RMSNorm, tl.RmsNorm,
    norm.RmsNormFp32, norm_act.RmsNormAct, norm_act.RmsNormActFp32, tl.SimpleNorm, norm.SimpleNormFp32, nn.Linear,
    tl.Linear, tl.LayerScale, metaformer.LayerNormNoBias)


def scaled_names(layer: nn.Module) -> list[str]:
    """Names of the tensors, parameters or buffers, that a scale of the layer's output channels multiplies.

    Raises:
        TypeError: A layer of this type, or one without such tensors, or whose tensors hooks make, cannot be scaled.
    """
    if facts_of(layer).ends:
        return _branch_names(layer)
    kind = type(layer)
    if kind not in SCALABLE:
        raise TypeError(
            f'A {kind.__name__} cannot be scaled by its parameters; layers that can: '
            f'{", ".join(sorted({t.__name__ for t in SCALABLE}))}.')
    names = [name for name in SCALABLE[kind] if getattr(layer, name, None) is not None]
    if SCALABLE[kind][0] not in names:
        raise TypeError(f'This {kind.__name__} has no {SCALABLE[kind][0]} to scale (affine=False?).')
    made = [name for name in names if name not in layer._parameters and name not in layer._buffers]
    if made and layer._forward_pre_hooks:  # replicas of DataParallel have no parameters either
        raise TypeError(
            f'The {made[0]} of this {kind.__name__} is made by a hook (pruning, weight_norm), which would undo the '
            'scale: remove it, and call timm_asr.fold_asr(model) first.')
    if isinstance(layer, tl.SplitBatchNorm2d):
        names += [f'aux_bn.{i}.{name}' for i in range(len(layer.aux_bn)) for name in _WEIGHT_BIAS]
    return names


def has_hooks(layer: nn.Module) -> bool:
    """Whether a layer, or one inside it, has forward hooks: those of pruning and weight_norm among them."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())


def has_activation(layer: nn.Module) -> bool:
    """Whether a layer applies an activation after its scale and shift."""
    return isinstance(layer, WITH_ACTIVATION) and not isinstance(getattr(layer, 'act', None), nn.Identity | None)


def _branch_names(block: nn.Module) -> list[str]:
    names = []
    for end in facts_of(block).ends(block):  # type: ignore[misc]
        layer = block.get_submodule(end)
        if has_activation(layer):
            raise TypeError(
                f"The parallel branch '{end}' of this {type(block).__name__} ends in an activation, after which "
                'the sum cannot be scaled by parameters.')
        names += [f'{end}.{name}' for name in scaled_names(layer)]
    if not names:
        raise TypeError(f'This {type(block).__name__} has no parallel branch that ends in a layer to scale.')
    return names


def out_channels(layer: nn.Module) -> int:
    """Number of output channels of a scalable layer.

    Raises:
        TypeError: The layer cannot be scaled, or normalises over more than its channels.
    """
    names = scaled_names(layer)
    tensor = _tensor(layer, names[0])
    if type(layer) in _TRANSPOSED:
        return layer.out_channels  # type: ignore[return-value]
    if any(_tensor(layer, name).shape[0] != tensor.shape[0] for name in names):
        raise TypeError(f'The parallel branches of this {type(layer).__name__} differ in their number of channels.')
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and tensor.ndim != 1:
        raise TypeError(
            f'A {type(layer).__name__} over the shape {tuple(tensor.shape)} has no channel weights to scale; '
            'one over the channels alone has.')
    return tensor.shape[0]


def channel_dim(layer: nn.Module) -> int:
    """Dimension of the channels in a scalable layer's output: -1 for layers that keep them last, otherwise 1."""
    while facts_of(layer).ends:
        layer = layer.get_submodule(scaled_names(layer)[0].rpartition('.')[0])
    return -1 if type(layer) in _CHANNELS_LAST else 1


def owner_of(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module inside a layer that holds the tensor of this name, and its name there."""
    path, _, leaf = name.rpartition('.')
    return layer.get_submodule(path), leaf


def _tensor(layer: nn.Module, name: str) -> torch.Tensor:
    return getattr(*owner_of(layer, name))


def stacks(owner: nn.Module) -> bool:
    """Whether the first dimension of a layer's tensors is the output channel: the second is in transposed ones."""
    return type(owner) not in _TRANSPOSED


def scaled_tensors(layer: nn.Module, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a layer that v, (C,), multiplies, multiplied by it."""
    found = {}
    for name in scaled_names(layer):
        owner, leaf = owner_of(layer, name)
        tensor, factor = getattr(owner, leaf), v
        if not stacks(owner) and leaf == 'weight':  # (input channels, output channels of a group, ...)
            factor = v.view(owner.groups, 1, -1).expand(-1, len(tensor) // owner.groups, -1).flatten(0, 1)
        found[name] = tensor * factor.view(*factor.shape, *[1] * (tensor.ndim - factor.ndim))
    return found


def run_with(layer: nn.Module, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """layer(x) with these tensors in the place of its own of the same names. The layer is not touched.

    ``torch.func.functional_call`` would swap them in and out, which two threads cannot do at once.
    """
    twin = None if torch.compiler.is_compiling() else stand_in(layer, tensors)  # where it is traced, nothing is swapped
    # A hook is given the module that it is on, and may keep something there.
    if twin is None or any(map(is_hooked, layer.modules())):
        return functional_call(layer, dict(tensors), (x,))
    return twin(x)


def stand_in(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A module that computes what this one does, with other tensors: their names as in ``module.named_parameters()``.

    It shares everything else with the module, running statistics included. The module itself is not touched.

    Raises:
        TypeError: The module's ``forward`` was replaced by another function, which would call the module itself.
    """
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__['_compiled_call_impl'] = None  # of the module itself too
    own = twin.__dict__.pop('forward', None)
    if own is not None and getattr(own, '__func__', None) is not type(module).forward:
        raise TypeError(
            f'The forward of this {type(module).__name__} was replaced (accelerate does so for a device_map and for '
            'offloading), which would leave ASR out: call timm_asr.fold_asr(model) first.')
    children: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition('.')
        if rest:
            children.setdefault(head, {})[rest] = tensor
        else:
            twin.__dict__[name] = tensor  # found before a parameter or buffer of that name
    if children:
        twin.__dict__['_modules'] = {
            **module._modules, **{name: stand_in(module._modules[name], own) for name, own in children.items()}}  # type: ignore[arg-type]
    return twin


@torch.no_grad()
def scale_(layer: nn.Module, v: torch.Tensor) -> None:
    """Multiply the layer's output channels by v, (C,), in place and for good."""
    for name, tensor in scaled_tensors(layer, v).items():
        _tensor(layer, name).copy_(tensor)
