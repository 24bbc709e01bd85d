"""ECA, efficient channel attention."""

from typing import Any

import torch
from timm.layers import EcaModule

from .gate import ChannelGate, check_unused


class ECA(ChannelGate, EcaModule):
    """Efficient channel attention, v = sigmoid(conv1d_k(u)), u = GAP(x), k odd and about log2(C) / 2 + 1/2.

    Wang et al.: ECA-Net: Efficient Channel Attention for Deep CNNs, CVPR 2020, https://arxiv.org/abs/1910.03151.
    timm's ``EcaModule``; the convolution runs over the channels and has no bias.

    Args:
        channels: Channels C of the feature map.
        device: Of the parameters.
        dtype: Of the parameters.
        unused: Reduction arguments of timm's blocks, which this gate has no use for.
    """

    def __init__(
            self,
            channels: int,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **unused: Any,
    ) -> None:
        check_unused('ECA', unused)
        super().__init__(channels, device=device, dtype=dtype)

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return self.conv(u.unsqueeze(1)).squeeze(1)
