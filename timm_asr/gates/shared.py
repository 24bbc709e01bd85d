"""Attention that the blocks of a stage share (DIA): the protocol, and the gates that follow it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class SharedForm:
    """How a shared unit runs at inference.

    Attributes:
        reads: As in :class:`~timm_asr.gates.forms.GateForm`.
        pool: As there.
        squeezes: For each block a layer that acts on its pooled values before the unit does, or None.
        unit: What the blocks still share.
    """

    reads: str
    pool: nn.Module | None
    squeezes: list[nn.Module | None]
    unit: 'SharedUnit'


class SharedUnit(nn.Module):
    """One attention unit for all blocks of a stage: DIA paper, Eq. 2 and Figure 3.

    A stage runs, with a = f(x) the residual branch of each of its blocks in turn::

        state = unit.start(x)                    # nothing is kept in the unit between or during calls
        for block in blocks:
            a, shortcut = block(x)
            a, z, state = unit(a, state)         # the shared part, of pool and excite, as a gate is
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

    def pool(self, a: Tensor) -> Tensor:
        """Feature map (B, C, H, W) to descriptor (B, D)."""
        raise NotImplementedError

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
        """The feature map as one product with z, and nothing else, may take it, and its descriptor, ``pool(a)``."""
        return a, self.pool(a)

    @torch.jit.ignore
    def inference_form(self, convs: Sequence[nn.Module]) -> SharedForm | None:
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

    def pool(self, a: Tensor) -> Tensor:
        return self.gate.pool(a)

    def read(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate.read(a)

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.gate.excite(u), state

    @torch.jit.ignore
    def inference_form(self, convs: Sequence[nn.Module]) -> SharedForm | None:
        forms = [self.gate.inference_form(conv) for conv in convs]
        if not forms or forms[0] is None:
            return None
        shared, squeezes = forms[0].gate, [None] * len(forms)
        if forms[0].reads == 'input':  # a block's convolution is swallowed, so that part is the block's own
            squeezes, rests = zip(*(form.gate.split() for form in forms), strict=True)
            shared = rests[0]
        return SharedForm(forms[0].reads, forms[0].pool, list(squeezes), InferenceSharedGate(shared))


class InferenceSharedGate(SharedUnit):
    """What blocks share of a gate after pooling and after the layers of their own, (B, D) -> (B, C)."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.gate(u), state
