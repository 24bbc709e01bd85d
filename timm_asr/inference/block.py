"""Residual blocks with attention, and stages that share a unit, as they run at inference."""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..asr.blocks import BLOCKS, facts_of
from ..asr.scaled import has_activation
from ..gates.forms import GateForm, InferenceForm, PointwiseConv2d, in_place
from ..gates.gate import ChannelGate
from ..gates.shared import SharedStage
from .fold_bn import foldable


class InferenceBranch(InferenceForm):
    """A residual block without its attention, (B, C', H', W') -> the branch, the gate's descriptor and the shortcut.

    The last norm is folded, since the gate may read through it. There is no training mode: the block computes what it
    was made from computed in eval mode, so dropped paths are gone too.

    ``block`` is in eval mode, and its ``layers`` (:class:`timm_asr.asr.blocks.Block`) are taken over; ``last`` is its
    last convolution, norm folded. The unit of a stage may give each block a linear layer ``squeeze`` of its own.
    """

    def __init__(
            self, block: nn.Module, layers: tuple[str, ...], last: nn.Module, form: GateForm,
            squeeze: nn.Module | None = None) -> None:
        super().__init__()
        body = {name: getattr(block, name) for name in layers[:-3]}
        self.body = nn.Sequential(OrderedDict(
            (name, _faster(layer)) for name, layer in body.items() if not isinstance(layer, nn.Identity)))
        self.last, self.reads, self.pool, self.squeeze = last, form.reads, form.pool, squeeze
        self.act = in_place(getattr(block, layers[-1]))
        self.downsample = block.downsample
        self.train(False)

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The branch, the descriptor and the shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.body(x)
        a = self.last(x)
        if self.reads == 'output':
            x = a
        u = x.mean((2, 3)) if self.pool is None else self.pool(x)
        if self.reads == 'projected':
            u = F.linear(u, self.last.weight.flatten(1), self.last.bias)
        return a, u if self.squeeze is None else self.squeeze(u), shortcut

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.branch(x)

    def merge(self, a: torch.Tensor, v: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """act(shortcut + v * a), written over a, which nobody else holds, where no gradient is wanted."""
        v = v.view(v.shape[0], -1, 1, 1)
        if torch.is_grad_enabled() or torch.jit.is_tracing():  # the older ONNX exporter knows no `out`
            return self.act(torch.addcmul(shortcut, a, v))
        return self.act(torch.addcmul(shortcut, a, v, out=a))


class InferenceBlock(InferenceBranch):
    """A residual block whose gate is its own, (B, C', H', W') -> (B, C, H, W); arguments as in the base class."""

    def __init__(self, block: nn.Module, layers: tuple[str, ...], last: nn.Module, form: GateForm) -> None:
        super().__init__(block, layers, last, form)
        self.gate = form.gate.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        a, u, shortcut = self.branch(x)
        return self.merge(a, self.gate(u), shortcut)


class InferenceStage(InferenceForm):
    """Residual blocks in a row that share a unit, (B, C', H', W') -> (B, C, H, W); see :class:`SharedUnit`."""

    grad_checkpointing = False  #: of the stage that it stands for; without a meaning here

    def __init__(self, blocks: list[InferenceBranch], form: GateForm) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.unit = form.gate
        self.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.unit.start(x)
        for block in self.blocks:
            a, u, shortcut = block(x)
            v, state = self.unit.excite(u, state)
            x = block.merge(a, v, shortcut)
        return x


def _faster(layer: nn.Module) -> nn.Module:
    """A layer, or the same one as a class of this package that runs faster."""
    return PointwiseConv2d.of(layer) if PointwiseConv2d.fits(layer) else in_place(layer)


def _folds(block: nn.Module, layers: tuple[str, ...]) -> bool:
    """Whether the last convolution of a block can do the work of the norm after it as well."""
    if not layers:
        return False
    conv, norm = getattr(block, layers[-3]), getattr(block, layers[-2])
    return isinstance(norm, nn.Identity) or (foldable(conv, norm) and not has_activation(norm))


def _last_convolution(block: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """The last convolution of a block, its norm folded."""
    conv, norm = getattr(block, layers[-3]), getattr(block, layers[-2])
    return _faster(conv if isinstance(norm, nn.Identity) else fuse_conv_bn_eval(conv, norm))


def block_maker(block: nn.Module) -> Callable[[], nn.Module] | None:
    """What makes the inference form of a block in eval mode, whose layers are taken over; None where it has none."""
    layers = facts_of(block).layers
    if (not _folds(block, layers) or not isinstance(block.se, ChannelGate) or not block.se.multiplies
            or block.se.inference_form() is None):
        return None

    def make() -> nn.Module:
        last = _last_convolution(block, layers)
        return InferenceBlock(block, layers, last, block.se.inference_form(last))

    return make


def stage_maker(stage: nn.Module) -> Callable[[], nn.Module] | None:
    """The same for a stage with a shared unit."""
    if not isinstance(stage, SharedStage):
        return None
    # A block that is cut in two has the layers of the whole block.
    layers = [next((whole.layers for whole in BLOCKS.values() if whole.branch is type(b)), ()) for b in stage]
    if not all(b.se is None and _folds(b, own) for b, own in zip(stage, layers, strict=True)) or (
            stage.unit.inference_form([getattr(b, own[-3]) for b, own in zip(stage, layers, strict=True)]) is None):
        return None

    def make() -> nn.Module:
        lasts = [_last_convolution(b, own) for b, own in zip(stage, layers, strict=True)]
        form = stage.unit.inference_form(lasts)
        return InferenceStage([
            InferenceBranch(block, own, last, form, squeeze)
            for block, own, last, squeeze in zip(stage, layers, lasts, form.squeezes, strict=True)], form)

    return make
