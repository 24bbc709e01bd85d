"""SPE, self-adaptive pooling enhancement: a learned mix of max and min pooling."""

from typing import Any

import torch
from torch import nn

from .gate import ChannelGate, check_unused
from .pooling import extremes

#: Ways to reweight: the paper's, those of its Figure 4, and none.
REWEIGHTS = ('shared', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'none')


class SPE(ChannelGate):
    """Self-adaptive pooling enhancement, v = v_exc * v_rew: SPENet paper, Algorithm 1.

    u = lambda max(x) + (1 - lambda) min(x), lambda = p0^2 / (p0^2 + p1^2), p0 = p1 = 1/2 at the start (Eq. 2 and 3),
    v_exc = sigmoid(w u + b) (Eq. 4), v_rew = sigmoid(w' min(x) + w' max(x) + b') (Eq. 6), all w starting at 0 and all
    b at -1. With g(y) = w' y + b', the ablations of Table 4 are:

    ========  =============================================================
    reweight  v_rew
    ========  =============================================================
    'shared'  sigmoid(w' min + w' max + b'), the paper's
    'a'       sigmoid(g1(min) + g2(max)), each with its own w' and b'
    'b'       w' min + w' max + b', no sigmoid
    'c'       sigmoid(g(min) * g(max))
    'd'       sigmoid(g(min)) + sigmoid(g(max))
    'e'       sigmoid(g(min)) * sigmoid(g(max))
    'f'       sigmoid(g(max))
    'g'       sigmoid(g(min))
    'none'    1
    ========  =============================================================

    Zhong, Wen, Qin: Mix-Pooling Strategy for Attention Mechanism, https://arxiv.org/abs/2208.10322.

    Args:
        channels: Channels C of the feature map.
        mix: Fixed lambda in [0, 1] (Table 3); learned where None.
        reweight: See above.
        eta: Factor of the penalty p0^2 + p1^2 (Eq. 8), which training adds through ``timm_asr.auxiliary_loss``.
        device: Of the parameters.
        dtype: Of the parameters.
        unused: Reduction arguments of timm's blocks, which this gate has no use for.

    Raises:
        ValueError: ``mix``, ``reweight`` or ``eta`` is out of range.
    """

    def __init__(
            self,
            channels: int,
            mix: float | None = None,
            reweight: str = 'shared',
            eta: float = 0.1,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **unused: Any,
    ) -> None:
        check_unused('SPE', unused)
        super().__init__()
        if mix is not None and not 0 <= mix <= 1:
            raise ValueError(f"SPE's mix is {mix}; it takes a number from 0 (min) to 1 (max), or None to learn it.")
        if reweight not in REWEIGHTS:
            raise ValueError(f"SPE's reweight is {reweight!r}; it takes one of {', '.join(REWEIGHTS)}.")
        if eta < 0:
            raise ValueError(f"SPE's eta is {eta}; the factor of a penalty is not negative.")
        dd = {'device': device, 'dtype': dtype}
        self.reweight = reweight
        self.eta = eta
        # Makes the mix 1/2 where both its parameters are zero; changes it by less than 1e-12 where one exceeds 0.1.
        self.eps = 1e-14
        self.fixed_mix = mix
        self.mix = nn.Parameter(torch.full((2,), 0.5, **dd)) if mix is None else None
        self.exc_weight = nn.Parameter(torch.zeros(channels, **dd))
        self.exc_bias = nn.Parameter(torch.full((channels,), -1.0, **dd))
        width = {'a': 2 * channels, 'none': 0}.get(reweight, channels)  # 'a': for max, then for min
        self.rew_weight = nn.Parameter(torch.zeros(width, **dd)) if width else None
        self.rew_bias = nn.Parameter(torch.full((width,), -1.0, **dd)) if width else None

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Maximum and minimum of every channel, (B, C, H, W) -> (B, 2C), all maxima first: Eq. 1."""
        return torch.cat([x.amax((2, 3)), x.amin((2, 3))], dim=1)

    def describe(self, psi: torch.Tensor) -> torch.Tensor:
        return torch.cat([psi, psi]).unsqueeze(0)

    def shares(self) -> torch.Tensor:
        """Shares (2,) of maximum and minimum, lambda and 1 - lambda: Eq. 3. Needs a learned mix."""
        p = self.mix
        assert p is not None
        # In single precision at least, whatever the parameters' own: squares of small float16 numbers are zero.
        q = (p * p.new_ones([1], dtype=torch.float32)).square() + self.eps
        return q / q.sum()

    def excite(self, u: torch.Tensor) -> torch.Tensor:
        high, low = u.chunk(2, 1)
        return self._weigh(high, low)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, high, low = extremes(x)
        return self.scale(x, self._weigh(high, low))

    def _weigh(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        mixed = self._mixed(high, low)
        return torch.addcmul(self.exc_bias, mixed, self.exc_weight).sigmoid() * self._reweights(high, low)

    def _mixed(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        mix = self.fixed_mix
        if mix is not None:
            return mix * high + (1 - mix) * low
        return torch.lerp(low, high, self.shares()[0].to(high.dtype))

    def _reweights(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        w, b = self.rew_weight, self.rew_bias
        if w is None or b is None:
            return torch.ones_like(high)
        if self.reweight == 'a':
            w_high, w_low = w.chunk(2)
            return (w_high * high + w_low * low + b.view(2, -1).sum(0)).sigmoid()
        if self.reweight == 'b':
            return (high + low) * w + b
        if self.reweight == 'c':
            return ((w * high + b) * (w * low + b)).sigmoid()
        if self.reweight == 'd':
            return (w * high + b).sigmoid() + (w * low + b).sigmoid()
        if self.reweight == 'e':
            return (w * high + b).sigmoid() * (w * low + b).sigmoid()
        if self.reweight == 'f':
            return (w * high + b).sigmoid()
        if self.reweight == 'g':
            return (w * low + b).sigmoid()
        return torch.addcmul(b, high + low, w).sigmoid()

    @torch.jit.ignore
    def auxiliary_loss(self) -> torch.Tensor:
        """The penalty eta (p0^2 + p1^2), a scalar, zero where the mix is fixed: Eq. 8."""
        if self.mix is None:
            return self.exc_weight.new_zeros(())
        return self.eta * self.mix.square().sum()
