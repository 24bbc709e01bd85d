"""SE, squeeze-and-excitation."""

from functools import partial
from typing import Any

import torch
from timm.layers import create_act_layer
from torch import nn

from .bottleneck import BottleneckGate, dense, hidden_width
from .pooling import MixPool, average_of, average_pool, check_mix, mixed_pool

MAX_DEPTH = 4


class SE(BottleneckGate):
    """Squeeze-and-excitation, v = sigmoid(W2 relu(W1 u + b1) + b2), u = GAP(x).

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507.
    The hidden width is round(C / 16), not rounded up to a multiple of eight. timm's ``SEModule`` has the same keys.

    With ``depth`` k the gate is as deep as Eq. 2 of the RAS paper makes it: g^k = W2^k relu(W1^k g^(k-1)), g^0 = u,
    v = sigmoid(g^k), each application with layers of its own.

    Args:
        channels: Channels C of the feature map.
        rd_ratio: Hidden width over C.
        rd_channels: Hidden width, instead of ``rd_ratio``.
        rd_divisor: The hidden width is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        bias: Whether the linear layers have a bias (the papers' counts on ResNets include it).
        pooling: 'average', 'max', 'min', or a number lambda for lambda * max + (1 - lambda) * min (SPENet paper,
            Figure 2).
        depth: Applications k, 1 to 4.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: ``pooling`` or ``depth`` is out of range.
    """

    options = {**BottleneckGate.options, 'se_bias': 'bias', 'se_pool': 'pooling', 'se_depth': 'depth'}
    # One pixel is the same however it is pooled; deeper hidden units could be dead for ever, as in a recurrence.
    under_asr = {'pooling': 'average', 'depth': 1}
    paper = """@inproceedings{hu2018squeeze,
  title     = {Squeeze-and-Excitation Networks},
  author    = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}"""

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            act_layer: type[nn.Module] = nn.ReLU,
            bias: bool = True,
            pooling: str | float = 'average',
            depth: int = 1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f'se_depth is {depth}; SE is 1 to {MAX_DEPTH} deep.')
        self.mix = None if pooling == 'average' else check_mix(pooling, 'se_pool')
        width = hidden_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.fc1 = nn.Conv2d(channels, width, 1, bias=bias, device=device, dtype=dtype)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Conv2d(width, channels, 1, bias=bias, device=device, dtype=dtype)
        again = partial(SE, channels, rd_channels=width, act_layer=act_layer, bias=bias, device=device, dtype=dtype)
        self.deeper = nn.ModuleList(again() for _ in range(depth - 1))

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Average, or mix of maximum and minimum, of every channel: (B, C, H, W) -> (B, C)."""
        if self.mix is not None:
            return mixed_pool(x, self.mix)
        return average_pool(x).flatten(1)

    def read(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.mix is not None:
            return x, mixed_pool(x, self.mix)
        return average_of(x)

    def logits(self, u: torch.Tensor) -> torch.Tensor:
        u = dense(self.act(self.hidden(u)), self.fc2.weight, self.fc2.bias)
        for gate in self.deeper:
            u = gate.logits(u)
        return u

    @torch.jit.ignore
    def averages(self) -> bool:
        return self.mix is None

    @torch.jit.ignore
    def layer_pairs(self) -> list[tuple[Any, Any]]:
        return [(self.fc1, self.fc2), *((gate.fc1, gate.fc2) for gate in self.deeper)]

    @torch.jit.ignore
    def inference_pool(self) -> nn.Module | None:
        return None if self.mix is None else MixPool(self.mix)
