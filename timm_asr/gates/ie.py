"""IE, instance enhancement."""

from typing import Any

import torch
from torch import Tensor, nn

from .forms import ChannelSigmoid, channel_by_channel
from .fused import affine
from .gate import ChannelGate, check_unused


class IE(ChannelGate):
    """Instance enhancement, v = sigmoid(w * u + b) channel by channel, u = GAP(x).

    Liang et al.: Instance Enhancement Batch Normalization, AAAI 2020, https://arxiv.org/abs/1908.04008.
    w starts at 0 and b at -1, as there. Batch normalisation and this gate in one: :mod:`timm_asr.gates.iebn`.
    """

    affine = True
    paper = 'liang2020instance'

    def __init__(
            self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
            **unused: Any) -> None:
        check_unused('IE', unused)
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.full((channels,), -1.0, device=device, dtype=dtype))

    def logits(self, u: Tensor) -> Tensor:
        return affine(u, self.weight, self.bias)

    @torch.jit.ignore
    def pooled_form(self) -> ChannelSigmoid:
        return channel_by_channel(self, self.weight)
