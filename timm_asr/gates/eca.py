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
        kernel_size: k, odd, instead of the one that follows from C.
        device: Of the parameters.
        dtype: Of the parameters.
        unused: Reduction arguments of timm's blocks, which this gate has no use for.

    Raises:
        ValueError: ``kernel_size`` is even.
    """

    options = {'eca_kernel': 'kernel_size'}
    affine = True
    paper = """@inproceedings{wang2020eca,
  title     = {{ECA-Net}: Efficient Channel Attention for Deep Convolutional Neural Networks},
  author    = {Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2020}
}"""

    def __init__(
            self,
            channels: int,
            kernel_size: int | None = None,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **unused: Any,
    ) -> None:
        check_unused('ECA', unused)
        if kernel_size is None:
            super().__init__(channels, device=device, dtype=dtype)
        elif kernel_size > 0 and kernel_size % 2:
            super().__init__(None, kernel_size=kernel_size, device=device, dtype=dtype)
        else:
            raise ValueError(f"ECA's kernel_size is {kernel_size}; it takes an odd number, such as 5.")

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        return self.conv(u.unsqueeze(1)).squeeze(1)
