"""SE, squeeze-and-excitation."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .bottleneck import BottleneckGate, dense
from .fused import MixPool, average_of, average_pool, check_mix

MAX_DEPTH = 4


class SE(BottleneckGate):
    """Squeeze-and-excitation, v = sigmoid(W2 relu(W1 u + b1) + b2), u = GAP(x).

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507.
    The hidden width is round(C / 16), not rounded up to a multiple of eight. timm's ``SEModule`` has the same keys.
    The papers' counts on ResNets include the biases.

    With ``depth`` k the gate is as deep as Eq. 2 of the RAS paper makes it: g^k = W2^k relu(W1^k g^(k-1)), g^0 = u,
    v = sigmoid(g^k), each application with layers of its own.

    Args:
        pooling: 'average', 'max', 'min', or a number lambda for lambda * max + (1 - lambda) * min (SPENet paper,
            Figure 2).
        depth: Applications k, 1 to 4.

    Raises:
        ValueError: ``pooling`` or ``depth`` is out of range.
    """

    options = {**BottleneckGate.options, 'se_bias': 'bias', 'se_pool': 'pooling', 'se_depth': 'depth'}
    # One pixel is the same however it is pooled; deeper hidden units could be dead for ever, as in a recurrence.
    under_asr = {'pooling': 'average', 'depth': 1}
    layer = partial(nn.Conv2d, kernel_size=1)
    paper = 'hu2018squeeze'

    def __init__(
            self, channels: int, *args: Any, pooling: str | float = 'average', depth: int = 1, **kwargs: Any) -> None:
        super().__init__(channels, *args, **kwargs)
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f'se_depth is {depth}; SE is 1 to {MAX_DEPTH} deep.')
        self.mixed = None if pooling == 'average' else MixPool(check_mix(pooling, 'se_pool'))
        self.deeper = nn.ModuleList(SE(channels, *args, **kwargs) for _ in range(depth - 1))

    def pool(self, x: Tensor) -> Tensor:
        """Average, or mix of maximum and minimum, of every channel: (B, C, H, W) -> (B, C)."""
        return average_pool(x).flatten(1) if self.mixed is None else self.mixed(x)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return average_of(x) if self.mixed is None else (x, self.mixed(x))

    def logits(self, u: Tensor) -> Tensor:
        u = dense(self.act(self.hidden(u)), self.fc2.weight, self.fc2.bias)
        for gate in self.deeper:
            u = gate.logits(u)
        return u

    @torch.jit.ignore
    def averages(self) -> bool:
        return self.mixed is None

    @torch.jit.ignore
    def layer_pairs(self) -> list[tuple[Any, Any]]:
        return [(self.fc1, self.fc2), *((gate.fc1, gate.fc2) for gate in self.deeper)]

    @torch.jit.ignore
    def inference_pool(self) -> nn.Module | None:
        return self.mixed
