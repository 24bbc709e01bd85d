"""Residual blocks with attention as they run at inference."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..asr.blocks import facts_of
from ..gates.forms import InferenceForm, in_place
from ..gates.gate import ChannelGate
from ..gates.pointwise import PointwiseConv2d
from .fold_bn import foldable


class InferenceBranch(InferenceForm):
    """A residual block without its attention, (B, C', H', W') -> the branch, the gate's descriptor and the shortcut.

    The last norm is folded, since the gate may read through it. There is no training mode: the block computes what it
    was made from computed in eval mode, so dropped paths are gone too.

    Args:
        block: The block, in eval mode; its layers are taken over.
        layers: Names of the block's layers, as :class:`timm_asr.asr.blocks.Block` has them.
        last: Its last convolution, norm folded.
        reads: What the gate reads, and how it is pooled, see :class:`~timm_asr.gates.forms.GateForm`.
        pool: See there.
    """

    def __init__(
            self,
            block: nn.Module,
            layers: tuple[str, ...],
            last: nn.Module,
            reads: str,
            pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        body = {name: getattr(block, name) for name in layers[:-3]}
        body = {name: layer for name, layer in body.items() if not isinstance(layer, nn.Identity)}
        act = getattr(block, layers[-1])
        kinds = [type(layer) for layer in body.values()]
        # With norms folded only convolutions and ReLUs are left, and calling a module for each ReLU is what a single
        # image pays for.
        self.rectifies = {*kinds[1::2], type(act)} == {nn.ReLU} and nn.ReLU not in kinds[::2]
        self.body = nn.Sequential(OrderedDict(
            (name, faster(layer)) for name, layer in body.items() if not self.rectifies or type(layer) is not nn.ReLU))
        self.last = last
        self.reads = reads
        self.pool = pool
        self.act = in_place(act)
        self.downsample = block.downsample
        self.train(False)

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The branch, the descriptor and the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.rectifies:
            for conv in self.body:
                x = conv(x).relu_()
        else:
            x = self.body(x)
        a = self.last(x)
        if self.reads == 'output':
            x = a
        u = x.mean((2, 3)) if self.pool is None else self.pool(x)
        if self.reads == 'projected':
            u = F.linear(u, self.last.weight.flatten(1), self.last.bias)
        return a, u, shortcut

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.branch(x)

    def merge(self, a: torch.Tensor, v: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """act(shortcut + v * a), written over a, which nobody else holds, where no gradient is wanted."""
        v = v.view(v.shape[0], -1, 1, 1)
        if torch.is_grad_enabled() or torch.jit.is_tracing():  # the older ONNX exporter knows no `out`
            return self.act(torch.addcmul(shortcut, a, v))
        x = torch.addcmul(shortcut, a, v, out=a)
        return x.relu_() if self.rectifies else self.act(x)


class InferenceBlock(InferenceBranch):
    """A residual block whose gate is its own, (B, C', H', W') -> (B, C, H, W).

    Args:
        gate: The gate's part after pooling; other arguments as in the base class.
        args: Of the base class.
    """

    def __init__(self, gate: nn.Module, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.gate = gate
        self.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        a, u, shortcut = self.branch(x)
        return self.merge(a, self.gate(u), shortcut)


def faster(layer: nn.Module) -> nn.Module:
    """A layer, or the same one as a class of this package that runs faster."""
    return PointwiseConv2d.of(layer) if PointwiseConv2d.fits(layer) else in_place(layer)


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a convolution can do the work of the norm after it as well."""
    return isinstance(norm, nn.Identity) or foldable(conv, norm)


def last_layers(block: nn.Module, layers: tuple[str, ...]) -> tuple[nn.Module, nn.Module]:
    """The last convolution of a block and its norm."""
    return getattr(block, layers[-3]), getattr(block, layers[-2])


def last_convolution(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """A convolution that does the work of the norm after it as well."""
    return faster(conv if isinstance(norm, nn.Identity) else fuse_conv_bn_eval(conv, norm))


def is_gated_block(module: nn.Module) -> bool:
    """Whether :func:`inference_block` changes this very module."""
    layers = facts_of(module).layers
    if not layers or not isinstance(module.se, ChannelGate) or module.se.inference_form() is None:
        return False
    return folds(*last_layers(module, layers))


def inference_block(block: nn.Module) -> InferenceBlock:
    """The inference form of a block in eval mode; layers are taken over."""
    layers = facts_of(block).layers
    last = last_convolution(*last_layers(block, layers))
    form = block.se.inference_form(last)
    return InferenceBlock(form.gate, block, layers, last, form.reads, form.pool)
