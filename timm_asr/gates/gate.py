"""What every channel attention module has in common: pool, excite, scale."""

from typing import Any

import torch
from torch import nn

from .pooling import average_pool


def check_unused(gate: str, unused: dict[str, Any]) -> None:
    """Accept what timm's blocks pass to any ``attn_layer``, though it means nothing to a gate without hidden layer.

    Raises:
        TypeError: Another keyword is among them.
    """
    unknown = set(unused) - {'rd_ratio', 'rd_channels', 'rd_divisor', 'act_layer'}
    if unknown:
        raise TypeError(f"{gate} has no argument '{min(unknown)}'.")


class ChannelGate(nn.Module):
    """Channel attention in three parts, so that each can be used without the others.

    ========  ==========================  =====================================
    part      shapes                      meaning
    ========  ==========================  =====================================
    pool      (B, C, H, W) -> (B, D)      feature map to descriptor u
    excite    (B, D) -> (B, C)            the gate proper: v = sigmoid(F(u))
    scale     (B, C, H, W), (B, C)        apply: x' = x * v
    ========  ==========================  =====================================

    ``forward`` chains them, x' = x * v with v = sigmoid(F(pool(x))) (ASR paper, Eq. 3 and 4). ASR needs ``excite``
    alone, fed with a learned vector.

    Subclasses are called as ``Gate(channels, ..., device=None, dtype=None)`` and so serve as timm's ``attn_layer``.
    """

    #: The weights depend on the descriptor alone, so a constant descriptor can be folded into a layer.
    foldable = True
    #: Values of the descriptor that one pixel of C channels stands for, per channel.
    psi_ratio = 1

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Global average pooling, (B, C, H, W) -> (B, C): Eq. 3."""
        return average_pool(x).flatten(1)

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        """F(u), what the sigmoid makes weights of: descriptor (B, D) -> (B, C)."""
        raise NotImplementedError

    def excite(self, u: torch.Tensor) -> torch.Tensor:
        """Descriptor (B, D) to channel weights (B, C) in [0, 1]."""
        return self.logits(u).sigmoid()

    def scale(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Multiply the feature map (B, C, H, W) by its channel weights (B, C): Eq. 4."""
        return x * v[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(x, self.excite(self.pool(x)))

    def describe(self, psi: torch.Tensor) -> torch.Tensor:
        """The descriptor (1, D) of a feature map of one pixel whose values are psi, a vector (psi_ratio * C,)."""
        return psi.unsqueeze(0)

    def hidden(self, u: torch.Tensor) -> torch.Tensor | None:
        """Pre-activations (B, R) of a hidden ReLU, None where there is none."""
        return None

    def flip_hidden(self, rows: torch.Tensor) -> None:
        """Change the sign of the rows (boolean, (R,)) of the layer before the hidden ReLU."""
