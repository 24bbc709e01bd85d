"""IE, instance enhancement."""

from typing import Any

import torch
from torch import nn

from .forms import ChannelSigmoid, channel_by_channel
from .fused import affine
from .gate import ChannelGate, check_unused


class IE(ChannelGate):
    """Instance enhancement, v = sigmoid(w * u + b) channel by channel, u = GAP(x).

    Liang et al.: Instance Enhancement Batch Normalization, AAAI 2020, https://arxiv.org/abs/1908.04008.
    w starts at 0 and b at -1, as there. Batch normalisation and this gate in one: :mod:`timm_asr.gates.iebn`.

    Args:
        channels: Channels C of the feature map.
        device: Of the parameters.
        dtype: Of the parameters.
        unused: Reduction arguments of timm's blocks, which this gate has no use for.
    """

    affine = True
    paper = """@inproceedings{liang2020instance,
  title     = {Instance Enhancement Batch Normalization: An Adaptive Regulator of Batch Noise},
  author    = {Liang, Senwei and Huang, Zhongzhan and Liang, Mingfu and Yang, Haizhao},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2020}
}"""

    def __init__(
            self,
            channels: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **unused: Any,
    ) -> None:
        check_unused('IE', unused)
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.full((channels,), -1.0, device=device, dtype=dtype))

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return affine(u, self.weight, self.bias)

    @torch.jit.ignore
    def pooled_form(self) -> ChannelSigmoid:
        return channel_by_channel(self, self.weight)
