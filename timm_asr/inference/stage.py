"""Stages with a shared unit (DIA) as they run at inference."""

import torch
from torch import nn

from ..asr.blocks import BLOCKS
from ..gates.forms import InferenceForm
from ..gates.shared import SharedForm
from ..gates.shared_stage import SharedStage
from .block import InferenceBranch, folds, last_convolution, last_layers


class SqueezedBranch(InferenceBranch):
    """A branch whose descriptor passes a linear layer of the block's own; arguments as in the base class."""

    def __init__(self, squeeze: nn.Module, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.squeeze = squeeze

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, u, shortcut = self.branch(x)
        return a, self.squeeze(u), shortcut


class InferenceStage(InferenceForm):
    """Residual blocks in a row that share a unit, (B, C', H', W') -> (B, C, H, W); see :class:`SharedUnit`.

    Args:
        blocks: The blocks.
        form: How their unit runs.
    """

    def __init__(self, blocks: list[InferenceBranch], form: SharedForm) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.unit = form.unit
        self.train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.unit.start(x, len(self.blocks))
        for block in self.blocks:
            a, u, shortcut = block(x)
            v, state = self.unit.excite(u, state)
            x = block.merge(a, v, shortcut)
        return x


def is_shared_stage(module: nn.Module) -> bool:
    """Whether :func:`inference_stage` changes this very module."""
    return (
        isinstance(module, SharedStage)
        and all(_layers(b) and b.se is None and folds(*last_layers(b, _layers(b))) for b in module)
        and module.unit.inference_form([last_layers(b, _layers(b))[0] for b in module]) is not None)


def _layers(block: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a block that is cut in two, as the whole block has them."""
    return next((whole.layers for whole in BLOCKS.values() if whole.branch is type(block)), ())


def inference_stage(stage: SharedStage) -> InferenceStage:
    """The inference form of a stage in eval mode; layers are taken over."""
    lasts = [last_convolution(*last_layers(block, _layers(block))) for block in stage]
    form = stage.unit.inference_form(lasts)
    blocks = []
    for block, last, squeeze in zip(stage, lasts, form.squeezes, strict=True):
        args = (block, _layers(block), last, form.reads, form.pool)
        blocks.append(InferenceBranch(*args) if squeeze is None else SqueezedBranch(squeeze, *args))
    return InferenceStage(blocks, form)
