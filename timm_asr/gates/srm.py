"""SRM, style-based recalibration."""

from typing import Any

import torch
from torch import Tensor, nn

from .forms import GateForm, PairSigmoid, double, doubled, scale_and_shift
from .fused import average_pool
from .gate import ChannelGate, check_unused
from .shared import SharedGate, SharedUnit


class ChannelAffine(nn.Module):
    """y = w * u + b on (B, C): a BatchNorm whose statistics are fixed at mean 0 and variance 1."""

    def __init__(
            self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, u: Tensor) -> Tensor:
        return torch.addcmul(self.bias, u, self.weight)


class SRM(ChannelGate):
    """Style-based recalibration, v = sigmoid(BN(w1 * mean(x) + w2 * std(x))) channel by channel.

    Lee, Kim, Nam: SRM: A Style-based Recalibration Module for CNNs, ICCV 2019, https://arxiv.org/abs/1903.10829.
    The deviation is over all H * W positions (biased, as the paper writes it), with ``eps`` added to the variance.

    The weights start as a convolution of two inputs does, uniform in +-sqrt(1/2), and not at 0: at 0 a constant
    descriptor has no gradient at all.

    Args:
        eps: Added to the variance before the square root.
        fixed_stats: Replace the BatchNorm by an affine map. ASR feeds a single vector, of which batch statistics
            would leave nothing.
    """

    psi_ratio = 2  # mean and deviation
    under_asr = {'fixed_stats': True}
    norm_stays = True
    form_in_onnx = True  # OpenVINO 2026.4 computes other weights from the gate as trained for more than one image
    paper = 'lee2019srm'

    def __init__(
            self, channels: int, eps: float = 1e-5, fixed_stats: bool = False,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **unused: Any) -> None:
        check_unused('SRM', unused)
        super().__init__()
        self.eps = eps
        self.cfc = nn.Parameter(torch.empty(channels, 2, device=device, dtype=dtype))
        nn.init.uniform_(self.cfc, -(0.5**0.5), 0.5**0.5)
        norm = ChannelAffine if fixed_stats else nn.BatchNorm1d
        self.bn = norm(channels, device=device, dtype=dtype)

    def pool(self, x: Tensor) -> Tensor:
        """Mean and standard deviation of every channel side by side, (B, C, H, W) -> (B, 2C)."""
        return torch.cat(mean_std(x, self.eps), dim=3).flatten(1)

    def logits(self, u: Tensor) -> Tensor:
        return self.bn((u.unflatten(1, (-1, 2)) * self.cfc).sum(2))

    @torch.jit.ignore
    def inference_form(self, conv: nn.Module | None = None) -> GateForm | None:
        if isinstance(self.bn, nn.Identity):  # it is each block's own
            return None
        scale, shift = scale_and_shift(doubled(self.bn), self.bn.weight)
        weight = (double(self.cfc) * scale[:, None]).t().unsqueeze(1).contiguous()
        excite = PairSigmoid(weight.to(self.cfc), shift[None].to(self.cfc))
        return GateForm('output', MeanStdPool(self.eps), excite)

    @torch.jit.ignore
    def as_unit(self, shared_norm: bool = False) -> SharedUnit:
        return SharedGate(self) if shared_norm else SharedSRM(self)


class SharedSRM(SharedGate):
    """SRM with a shared linear part; BatchNorm and sigmoid are each block's own."""

    def __init__(self, gate: SRM) -> None:
        super().__init__(gate)
        gate.bn = nn.Identity()

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.gate.logits(u), state

    @torch.jit.ignore
    def make_own(self) -> nn.Module:
        weight = self.gate.cfc
        return nn.Sequential(nn.BatchNorm2d(weight.shape[0], device=weight.device, dtype=weight.dtype), nn.Sigmoid())


class MeanStdPool(nn.Module):
    """Mean and standard deviation of every channel, (B, C, H, W) -> (B, 2C), all means first."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(mean_std(x, self.eps), dim=1).flatten(1)


def mean_std(x: Tensor, eps: float) -> list[Tensor]:
    """Mean and standard deviation of every channel, (B, C, 1, 1) each."""
    # Two average poolings: torch.var_mean takes over ten times as long on channels_last maps on the CPU.
    mean = average_pool(x)
    return [mean, (average_pool((x - mean).square()) + eps).sqrt()]
