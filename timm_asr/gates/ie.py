"""IE, instance enhancement, and IEBN: a norm whose scale is weighed by it."""

from typing import Any

import torch
from torch import Tensor, nn

from .forms import ChannelSigmoid, doubled, scale_and_shift
from .fused import affine, average_pool
from .gate import ChannelGate, check_unused


class IE(ChannelGate):
    """Instance enhancement, v = sigmoid(w * u + b) channel by channel, u = GAP(x).

    Liang et al.: Instance Enhancement Batch Normalization, AAAI 2020, https://arxiv.org/abs/1908.04008.
    w starts at 0 and b at -1, as there. Batch normalisation and this gate in one: :class:`IEBN2d`.
    """

    affine = True
    paper = 'liang2020instance'

    def __init__(
            self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
            **unused: Any) -> None:
        check_unused(type(self).__name__, unused)
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.full((channels,), -1.0, device=device, dtype=dtype))

    def logits(self, u: Tensor) -> Tensor:
        return affine(u, self.weight, self.bias)

    @torch.jit.ignore
    def pooled_form(self) -> nn.Module:
        if not self.affine:
            return super().pooled_form()
        scale, shift = scale_and_shift(doubled(self).logits, self.weight)
        return ChannelSigmoid(scale.to(self.weight), shift.to(self.weight))


class IEBN2d(nn.Module):
    """y = x^ * gamma * sigmoid(w * GAP(x) + b) + beta, with x^ the normalised feature map: (B, C, H, W) -> the same.

    ``timm.create_model('resnet20', norm_layer='iebn')``, or ``norm_layer=IEBN2d`` for models of timm whose norms have
    no activation inside (ResNet). w starts at 0 and b at -1, so the scale starts at 0.27 gamma. The shift beta is not
    weighed.

    Liang et al.: Instance Enhancement Batch Normalization, AAAI 2020, https://arxiv.org/abs/1908.04008.

    The BatchNorm inside is an ordinary one without scale and shift, so what synchronises or freezes BatchNorms finds
    it, and the attention stays.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: That of the running statistics.
        device, dtype: Where the parameters are, and their type.
    """

    def __init__(
            self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.BatchNorm2d(num_features, eps, momentum, affine=False, **dd)
        self.weight = nn.Parameter(torch.ones(num_features, **dd))
        self.bias = nn.Parameter(torch.zeros(num_features, **dd))
        self.gate_weight = nn.Parameter(torch.zeros(num_features, **dd))
        self.gate_bias = nn.Parameter(torch.full((num_features,), -1.0, **dd))

    def forward(self, x: Tensor) -> Tensor:
        u = average_pool(x).flatten(1)
        scale = self.weight * torch.addcmul(self.gate_bias, u, self.gate_weight).sigmoid()
        return torch.addcmul(self.bias[:, None, None], self.norm(x), scale[..., None, None])
