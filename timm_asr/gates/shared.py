"""Attention that the blocks of a stage share (DIA): the protocol, and the gates that follow it."""

from collections.abc import Callable

import torch
from torch import nn

from .cbam import CBAM
from .gate import ChannelGate
from .srm import SRM


class SharedUnit(nn.Module):
    """One attention unit for all blocks of a stage: DIA paper, Eq. 2 and Figure 3.

    A stage runs, with a = f(x) the residual branch of each of its blocks in turn::

        state = unit.start(x)                    # nothing is kept in the unit between or during calls
        for block in blocks:
            a, shortcut = block(x)
            a, z, state = unit(a, state)         # the shared part
            x = block.merge(a, z, shortcut)      # act(shortcut + a * block.own(z))

    ``block.own`` is what a block keeps for itself: an identity, or a BatchNorm and what follows it, whose statistics
    belong to one place in the network (section 7.3). The unit is made of the same parts as a gate:

    ========  =================================  ===========================================
    part      shapes                             meaning
    ========  =================================  ===========================================
    pool      (B, C, H, W) -> (B, D)             feature map to descriptor u
    excite    (B, D), state -> (B, C), state     descriptor and state to z, and the new state
    own       z -> v                             z to weights; identity where z is v already
    ========  =================================  ===========================================
    """

    def start(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The state before the first block, from the stage's input (B, C', H', W'); empty for stateless units."""
        state: list[torch.Tensor] = []
        return state

    def pool(self, a: torch.Tensor) -> torch.Tensor:
        """Feature map (B, C, H, W) to descriptor (B, D)."""
        raise NotImplementedError

    def excite(self, u: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Descriptor (B, D) and state to z (B, C) and the new state."""
        raise NotImplementedError

    @torch.jit.ignore
    def make_own(self) -> nn.Module:
        """A new module that turns z, (B, C, 1, 1) or (B, 1, H, W), into weights, for one block."""
        return nn.Identity()

    def forward(
            self, a: torch.Tensor, state: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Feature map (B, C, H, W) and state to the map that z weighs, z (broadcast over it), and the new state."""
        z, state = self.excite(self.pool(a), state)
        return a, z[:, :, None, None], state


class SharedGate(SharedUnit):
    """A gate without BatchNorm, shared as it is: v = gate(pool(a)), no state.

    Args:
        gate: The gate.
    """

    def __init__(self, gate: ChannelGate) -> None:
        super().__init__()
        self.gate = gate

    def pool(self, a: torch.Tensor) -> torch.Tensor:
        return self.gate.pool(a)

    def excite(self, u: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.gate.excite(u), state


class SharedSRM(SharedGate):
    """SRM with a shared linear part; BatchNorm and sigmoid are each block's own.

    Args:
        gate: The gate; its BatchNorm is taken out.
    """

    def __init__(self, gate: SRM) -> None:
        super().__init__(gate)
        gate.bn = nn.Identity()

    def excite(self, u: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.gate.logits(u), state

    @torch.jit.ignore
    def make_own(self) -> nn.Module:
        weight = self.gate.cfc
        return nn.Sequential(
            nn.BatchNorm2d(weight.shape[0], device=weight.device, dtype=weight.dtype), nn.Sigmoid())


class SharedCBAM(SharedGate):
    """CBAM with shared MLP and convolution; the BatchNorm of the map over positions is each block's own.

    Here z is that map, (B, 1, H, W), and the feature map that it weighs has its channels weighed already.

    Args:
        gate: The gate.
        own_norm: Whether each block has its own BatchNorm; otherwise they share the gate's.
    """

    def __init__(self, gate: CBAM, own_norm: bool = True) -> None:
        super().__init__(gate)
        self.own_norm = own_norm
        if own_norm:
            gate.spatial.conv.bn = nn.Identity()

    @torch.jit.ignore
    def make_own(self) -> nn.Module:
        weight = self.gate.spatial.conv.conv.weight
        norm = [nn.BatchNorm2d(1, device=weight.device, dtype=weight.dtype)] if self.own_norm else []
        return nn.Sequential(*norm, nn.Sigmoid())

    def forward(
            self, a: torch.Tensor, state: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        v, state = self.excite(self.pool(a), state)
        a = a * v[:, :, None, None]
        z = torch.cat([a.mean(1, keepdim=True), a.amax(1, keepdim=True)], dim=1)
        return a, self.gate.spatial.conv(z), state


def shared_gate(
        make: Callable[..., ChannelGate],
        channels: int,
        shared_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
) -> SharedGate:
    """A gate as the unit of a stage.

    Args:
        make: Constructor of the gate, ``f(channels, device=None, dtype=None)``.
        channels: Channels C of the stage's feature maps.
        shared_norm: Share BatchNorms too (the ablation of the paper's Figure 11).
        device: Of the parameters.
        dtype: Of the parameters.
    """
    gate = make(channels, device=device, dtype=dtype)
    for module in gate.modules():  # as timm's ResNets start every convolution, those of gates in their blocks too
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    if isinstance(gate, CBAM):
        return SharedCBAM(gate, own_norm=not shared_norm)
    if isinstance(gate, SRM) and not shared_norm:
        return SharedSRM(gate)
    return SharedGate(gate)
