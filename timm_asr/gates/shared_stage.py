"""Stages whose blocks share one attention unit (DIA), built of timm's residual blocks."""

from functools import partial

import torch
from timm.models import checkpoint, checkpoint_seq
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .fused import weigh
from .shared import SharedUnit


class _Cut(nn.Module):
    """A residual block of timm's cut in two, so that the unit of a stage can act in between.

    ``forward`` gives the residual branch a = f(x) and the shortcut; ``merge`` weighs a and adds.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.branch(x)
        if self.se is not None:
            a = self.se(a)
        if self.downsample is not None:
            x = self.downsample(x)
        return a, x

    def merge(self, a: Tensor, z: Tensor, shortcut: Tensor) -> Tensor:
        """act(shortcut + a * own(z)), with z broadcast over the branch a."""
        z = self.own(z)
        if self.drop_path is not None:  # of images, so of their weights
            z = self.drop_path(z)
        return self.last_act(weigh(a, z, shortcut))


class BranchBasicBlock(_Cut, BasicBlock):  # type: ignore[misc]
    """timm's ``BasicBlock`` cut in two."""

    def branch(self, x: Tensor) -> Tensor:
        x = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        return self.bn2(self.conv2(self.aa(x)))  # type: ignore[misc]

    def last_act(self, a: Tensor) -> Tensor:
        return self.act2(a)


class BranchBottleneck(_Cut, Bottleneck):  # type: ignore[misc]
    """timm's ``Bottleneck`` cut in two."""

    def branch(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.drop_block(self.bn2(self.conv2(x))))
        return self.bn3(self.conv3(self.aa(x)))  # type: ignore[misc]

    def last_act(self, a: Tensor) -> Tensor:
        return self.act3(a)


class SharedStage(nn.ModuleList):
    """Residual blocks in a row that share one attention unit; see :class:`~timm_asr.gates.shared.SharedUnit`.

    (B, C', H', W') -> (B, C, H, W). The first block keeps the unit, ``stage[0].unit``: so it is counted and saved
    once, and the blocks keep the names that they have in the plain network. The unit's state lives inside one call.

    The stage does its own gradient checkpointing, block by block with the state passed along, since timm's helpers
    would call the blocks without their unit.

    Args:
        blocks: Blocks whose forward gives (branch, shortcut), with a method ``merge(branch, z, shortcut)``.
        unit: The shared unit.
    """

    __jit_unused_properties__ = ['unit']

    def __init__(self, blocks: list[nn.Module], unit: SharedUnit) -> None:
        super().__init__(blocks)
        for block in self:
            block.own = unit.make_own()
        self[0].unit = unit
        self.count = len(blocks)  # TorchScript does not know len(self)
        self.grad_checkpointing = False

    @property
    def unit(self) -> SharedUnit:
        """The unit that the blocks share."""
        return self[0].unit

    def forward(self, x: Tensor) -> Tensor:
        state = self[0].unit.start(x)
        if not torch.jit.is_scripting():
            return self._run(x, state)
        for block in self:
            a, shortcut = block(x)
            a, z, state = self[0].unit(a, state)
            x = block.merge(a, z, shortcut)
        return x

    def _run(self, x: Tensor, state: list[Tensor]) -> Tensor:
        handed = self.unit.hand_out(x, self.count)
        for n, block in enumerate(self):
            step = partial(self._step, block)
            if self.grad_checkpointing:
                step = partial(checkpoint, step)
            x, *state = step(x, *state, *handed[n])
        return x

    def _step(self, block: nn.Module, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        # State goes in and out as tensors of their own: inside a list, reentrant checkpointing would miss them.
        a, shortcut = block(x)
        a, z, after = self.unit(a, list(state))
        return block.merge(a, z, shortcut), *after


class PlainStage(nn.Sequential):
    """Blocks without a unit in a network where other stages have one; it checkpoints as they do."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x)
        return x
