"""SEM, switchable excitation: three excitations, each as strong as a learned switch makes it."""

from typing import Any

import torch
from timm.layers import EcaModule
from torch import Tensor, nn

from .bottleneck import BottleneckGate
from .fused import affine


class SEM(BottleneckGate):
    """Switchable excitation, v = sigmoid(s1 z1) * sigmoid(s2 z2) * sigmoid(s3 z3), u = GAP(x).

    The switch is s = sigmoid(W u + b), three numbers an image; the excitations are those of SE, ECA and IE:
    z1 = W2 relu(W1 u + b1) + b2, z2 = conv1d_k(u), z3 = w * u + b', with w starting at 0 and b' at -1.

    Zhong, Wen, Qin: Switchable Self-attention Module, https://arxiv.org/abs/2209.05680; the product of the three is
    that of the authors' code. Arguments as in :class:`BottleneckGate`.
    """

    paper = 'zhong2022switchable'

    def __init__(self, channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(channels, *args, **kwargs)
        where = {'device': self.fc1.weight.device, 'dtype': self.fc1.weight.dtype}
        self.switch = nn.Linear(channels, 3, **where)
        self.conv = EcaModule(channels, **where).conv
        self.weight = nn.Parameter(torch.zeros(channels, **where))
        self.bias = nn.Parameter(torch.full((channels,), -1.0, **where))

    def excite(self, u: Tensor) -> Tensor:
        switch = self.switch(u).sigmoid()
        z = torch.stack([
            self.logits(u), self.conv(u.unsqueeze(1)).squeeze(1), affine(u, self.weight, self.bias)], dim=1)
        v1, v2, v3 = (z * switch.unsqueeze(2)).sigmoid().unbind(1)
        return v1 * v2 * v3
