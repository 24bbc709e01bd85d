"""ECA, efficient channel attention."""

from typing import Any

import torch
from timm.layers import EcaModule
from torch import Tensor

from .gate import ChannelGate, check_unused


class ECA(ChannelGate, EcaModule):
    """Efficient channel attention, v = sigmoid(conv1d_k(u)), u = GAP(x), k odd and about log2(C) / 2 + 1/2.

    Wang et al.: ECA-Net: Efficient Channel Attention for Deep CNNs, CVPR 2020, https://arxiv.org/abs/1910.03151.
    timm's ``EcaModule``; the convolution runs over the channels and has no bias.

    Args:
        kernel_size: k, odd, instead of the one that follows from C.

    Raises:
        ValueError: ``kernel_size`` is even.
    """

    options = {'eca_kernel': 'kernel_size'}
    affine = True
    paper = 'wang2020eca'

    def __init__(
            self, channels: int, kernel_size: int | None = None, device: torch.device | str | None = None,
            dtype: torch.dtype | None = None, **unused: Any) -> None:
        check_unused('ECA', unused)
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"ECA's kernel_size is {kernel_size}; it takes an odd number, such as 5.")
        super().__init__(None if kernel_size else channels, kernel_size or 3, device=device, dtype=dtype)

    def logits(self, u: Tensor) -> Tensor:
        return self.conv(u.unsqueeze(1)).squeeze(1)
