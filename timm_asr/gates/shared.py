"""Attention that the blocks of a stage share (DIA): the protocol, the gates that follow it, and the stages."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models import checkpoint, checkpoint_seq
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .forms import GateForm
from .fused import average_of, weigh


class SharedUnit(nn.Module):
    """One attention unit for all blocks of a stage: DIA paper, Eq. 2 and Figure 3.

    A stage runs, with a = f(x) the residual branch of each of its blocks in turn::

        state = unit.start(x)                    # nothing is kept in the unit between or during calls
        for block in blocks:
            a, shortcut = block(x)
            a, z, state = unit(a, state)         # the shared part, of read and excite, as a gate is
            x = block.merge(a, z, shortcut)      # act(shortcut + a * block.own(z))

    ``block.own`` is what a block keeps for itself: an identity, or a BatchNorm and what follows it, whose statistics
    belong to one place in the network (section 7.3).
    """

    #: Keyword of ``timm.create_model`` -> argument of the constructor.
    options: dict[str, str] = {}
    #: As in :class:`~timm_asr.gates.gate.ChannelGate`.
    form_in_onnx = False

    def start(self, x: Tensor) -> list[Tensor]:
        """The state before the first block, from the stage's input; empty for stateless units."""
        state: list[Tensor] = []
        return state

    def hand_out(self, x: Tensor, blocks: int) -> Sequence[Sequence[Any]]:
        """For each of so many blocks what ``excite`` gets behind the state, made for all of them at once."""
        return [()] * blocks

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Descriptor (B, D) and state to z (B, C) and the new state."""
        raise NotImplementedError

    @torch.jit.ignore
    def make_own(self) -> nn.Module:
        """A new module that turns z, (B, C, 1, 1) or (B, 1, H, W), into weights, for one block."""
        return nn.Identity()

    def forward(self, a: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Feature map (B, C, H, W) and state to the map that z weighs, z (broadcast over it), and the new state."""
        a, u = self.read(a)
        z, state = self.excite(u, state)
        return a, z.unsqueeze(2).unsqueeze(3), state

    def read(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map as one product with z, and nothing else, may take it, and its descriptor (B, D).

        Here that is its global average.
        """
        return average_of(a)

    @torch.jit.ignore
    def inference_form(self, convs: Sequence[nn.Module]) -> GateForm | None:
        """How the unit runs at inference, None where it stays as it is.

        Args:
            convs: The last convolution of each block, norms folded; empty where the blocks are not known.
        """
        return None


class SharedGate(SharedUnit):
    """A gate without BatchNorm, shared as it is: v = gate(pool(a)), no state."""

    form_in_onnx = True  # where the gate's own is

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.gate = gate

    def read(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate.read(a)

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.gate.excite(u), state

    @torch.jit.ignore
    def inference_form(self, convs: Sequence[nn.Module]) -> GateForm | None:
        forms = [self.gate.inference_form(conv) for conv in convs]
        if not forms or forms[0] is None:
            return None
        shared, squeezes = forms[0].gate, [None] * len(forms)
        if forms[0].reads == 'input':  # a block's convolution is swallowed, so that part is the block's own
            squeezes, rests = zip(*(form.gate.split() for form in forms), strict=True)
            shared = rests[0]
        return GateForm(forms[0].reads, forms[0].pool, InferenceSharedGate(shared), squeezes)


class InferenceSharedGate(SharedUnit):
    """What blocks share of a gate after pooling and after the layers of their own, (B, D) -> (B, C)."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.gate(u), state


class CutBlock(nn.Module):
    """A residual block cut in two, so that the unit of a stage can act in between.

    ``forward`` gives the residual branch a = f(x) and the shortcut, here of timm's blocks; ``merge`` weighs a and adds.
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


class BranchBasicBlock(CutBlock, BasicBlock):  # type: ignore[misc]
    """timm's ``BasicBlock`` cut in two."""

    def branch(self, x: Tensor) -> Tensor:
        x = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        return self.bn2(self.conv2(self.aa(x)))  # type: ignore[misc]

    def last_act(self, a: Tensor) -> Tensor:
        return self.act2(a)


class BranchBottleneck(CutBlock, Bottleneck):  # type: ignore[misc]
    """timm's ``Bottleneck`` cut in two."""

    def branch(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.drop_block(self.bn2(self.conv2(x))))
        return self.bn3(self.conv3(self.aa(x)))  # type: ignore[misc]

    def last_act(self, a: Tensor) -> Tensor:
        return self.act3(a)


class SharedStage(nn.ModuleList):
    """Residual blocks in a row that share one attention unit; see :class:`SharedUnit`.

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
