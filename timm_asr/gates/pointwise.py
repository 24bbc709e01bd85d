"""A 1x1 convolution that is a matrix product where that is faster."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

# Multiply-accumulates up to which starting a convolution costs more than computing it. On two CPU cores a matrix
# product took half the time at 10^6 and twice the time at 5 * 10^7.
_SMALL = 2**22


@register_notrace_module
class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of stride 1, (B, C, H, W) -> (B, C', H, W), with the parameters of ``nn.Conv2d``.

    A small, channels-last input, one image say, is multiplied by the weight as a matrix. Compiled, traced and exported
    graphs hold an ordinary convolution.
    """

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a module is an ordinary convolution of one pixel, stride 1 and no groups."""
        return (
            type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) and conv.stride == (1, 1)
            and conv.groups == 1 and conv.padding in ((0, 0), 'same', 'valid'))

    @classmethod
    def of(cls, conv: nn.Conv2d) -> 'PointwiseConv2d':
        """The same layer, with the same parameter objects, for a convolution that fits."""
        new = cls(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device='meta')
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.conv2d(x, self.weight, self.bias)
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return self._forward(x)

    @torch.jit.unused
    def _forward(self, x: Tensor) -> Tensor:
        if (
                torch.jit.is_tracing() or torch.compiler.is_compiling()
                or x.numel() * self.out_channels > _SMALL or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return F.conv2d(x, self.weight, self.bias)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
