"""SEM, switchable excitation: three excitations, each as strong as a learned switch makes it."""

import torch
from timm.layers import EcaModule
from torch import nn

from .bottleneck import dense, hidden_width
from .fused import affine
from .gate import ChannelGate


class SEM(ChannelGate):
    """Switchable excitation, v = sigmoid(s1 z1) * sigmoid(s2 z2) * sigmoid(s3 z3), u = GAP(x).

    The switch is s = sigmoid(W u + b), three numbers an image; the excitations are those of SE, ECA and IE:
    z1 = W2 relu(W1 u + b1) + b2, z2 = conv1d_k(u), z3 = w * u + b', with w starting at 0 and b' at -1.

    Zhong, Wen, Qin: Switchable Self-attention Module, https://arxiv.org/abs/2209.05680; the product of the three is
    that of the authors' code.

    Args:
        channels: Channels C of the feature map.
        rd_ratio: Hidden width of W1 over C.
        rd_channels: Hidden width, instead of ``rd_ratio``.
        rd_divisor: The hidden width is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    options = {'rd_ratio': 'rd_ratio'}
    paper = """@article{zhong2022switchable,
  title   = {Switchable Self-attention Module},
  author  = {Zhong, Shanshan and Wen, Wushao and Qin, Jinghui},
  journal = {arXiv preprint arXiv:2209.05680},
  year    = {2022}
}"""

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            act_layer: type[nn.Module] = nn.ReLU,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        width = hidden_width(channels, rd_ratio, rd_channels, rd_divisor)
        self.switch = nn.Linear(channels, 3, **dd)
        self.fc1 = nn.Linear(channels, width, **dd)
        self.act = act_layer()
        self.fc2 = nn.Linear(width, channels, **dd)
        self.conv = EcaModule(channels, **dd).conv
        self.weight = nn.Parameter(torch.zeros(channels, **dd))
        self.bias = nn.Parameter(torch.full((channels,), -1.0, **dd))

    def hidden(self, u: torch.Tensor) -> torch.Tensor:
        return dense(u, self.fc1.weight, self.fc1.bias)

    def flip_hidden(self, rows: torch.Tensor) -> None:
        self.fc1.weight[rows] *= -1
        self.fc1.bias[rows] *= -1

    def excite(self, u: torch.Tensor) -> torch.Tensor:
        switch = self.switch(u).sigmoid()
        z = torch.stack([
            self.fc2(self.act(self.hidden(u))), self.conv(u.unsqueeze(1)).squeeze(1),
            affine(u, self.weight, self.bias)], dim=1)
        v1, v2, v3 = (z * switch.unsqueeze(2)).sigmoid().unbind(1)
        return v1 * v2 * v3
