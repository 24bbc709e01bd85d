"""RAS, recurrent attention strategy: a gate applied k times with itself."""

from typing import Any

import torch
from timm.layers import create_act_layer
from torch import Tensor, nn

from .bottleneck import BottleneckGate
from .eca import ECA
from .forms import GateForm
from .fused import affine
from .gate import ChannelGate
from .ie import IE
from .se import SE
from .spa import SPA
from .srm import ChannelAffine

MAX_STEPS = 4


class Rational(nn.Module):
    """A learnable rational function P(x) / (1 + |Q(x)|) of degrees 5 and 4, the same for all channels.

    Molina, Schramowski, Kersting: Pade Activation Units, ICLR 2020, https://arxiv.org/abs/1907.06732. It starts as
    a least-squares fit to leaky ReLU (slope 0.01) on [-3, 3], good to 0.02 there.
    """

    def __init__(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.numerator = nn.Parameter(torch.tensor([0.0336, 0.5050, 1.6527, 2.0081, 0.9306, 0.1521], **dd))
        self.denominator = nn.Parameter(torch.tensor([0.0, 3.9765, 0.0, 0.3013], **dd))

    def forward(self, x: Tensor) -> Tensor:
        p = self.numerator[5]
        for n in (4, 3, 2, 1, 0):
            p = p * x + self.numerator[n]
        q = self.denominator[3]
        for n in (2, 1, 0):
            q = q * x + self.denominator[n]
        return p / (1 + (q * x).abs())


class RAS(IE):
    """Recurrent attention, v = sigmoid(g(c_{k-1}(... c_1(g(u))))), g(u) = w * u + b, u = GAP(x): RAS paper, Eq. 4, 5.

    One gate g, :class:`~timm_asr.gates.ie.IE`, serves all k steps; each connection c_n between them is a BatchNorm of
    its own. w starts at 0 and b at -1, as in the authors' code.

    Zhong, Wen, Qin, Huang: Deepening Neural Networks Implicitly and Locally via Recurrent Attention Strategy,
    https://arxiv.org/abs/2210.15676.

    Args:
        steps: Times k that the gate is applied, 1 to 4.
        connect: 'bn', 'rational' (:class:`Rational`), or the name of one of timm's activations (Figure 2).
        share: One connection for all steps (Table 3).
        fixed_stats: Replace each BatchNorm by an affine map. ASR feeds a single vector, of which batch statistics
            would leave nothing.

    Raises:
        ValueError: ``steps`` or ``connect`` is out of range.
    """

    options = {'ras_depth': 'steps', 'ras_connect': 'connect', 'ras_share': 'share'}
    under_asr = {'fixed_stats': True}
    shareable = False  # its norms' statistics belong to one place in the network
    paper = 'zhong2022deepening'

    def __init__(
            self, channels: int, steps: int = 2, connect: str = 'bn', share: bool = False, fixed_stats: bool = False,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **unused: Any) -> None:
        super().__init__(channels, device, dtype, **unused)
        self.connections, self.passes = connections(
            channels, steps, connect, share, fixed_stats, device=device, dtype=dtype)
        self.affine = are_norms(self.connections)
        self.centred = connect == 'bn' and not fixed_stats

    def logits(self, u: Tensor) -> Tensor:
        for _ in range(self.passes):
            for connection in self.connections:
                # A norm takes its batch's mean away, so b has no gradient through it.
                b = self.bias.detach() if self.centred and connection.training else self.bias
                u = connection(affine(u, self.weight, b))
        return affine(u, self.weight, self.bias)

    pooled_form = IE.pooled_form  # which asks ``logits``


class Recurrent(ChannelGate):
    """Any gate applied k times with itself, its squashing at the end only: RAS paper, Eq. 3 and Table 3.

    Between two applications the output, (B, C), passes the connection, is seen as a feature map of one pixel, and is
    pooled as the gate pools: for SE and ECA that is the output itself, for SPA it is repeated 21 times.

    Args:
        steps, connect, share: As in :class:`RAS`.
        kwargs: Arguments of the gate.

    Raises:
        ValueError: ``steps`` or ``connect`` is out of range.
    """

    foldable = shareable = False
    unfoldable = 'fed with a constant, its hidden units could be dead for ever'  # at a later step, whatever the sign
    #: The gate's class; a subclass names it and is complete.
    kind: type[ChannelGate] = ChannelGate

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.options = {**cls.kind.options, **RAS.options}
        cls.paper = f'{RAS.paper}\n\n{cls.kind.paper}'

    def __init__(
            self, channels: int, steps: int = 2, connect: str = 'bn', share: bool = False,
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.gate = self.kind(channels, device=device, dtype=dtype, **kwargs)
        self.connections, self.passes = connections(
            channels, steps, connect, share, fixed_stats=False, device=device, dtype=dtype)
        self.grids, self.averages = self.gate.grids, self.gate.averages
        self.affine = self.gate.affine and are_norms(self.connections)

    def pool(self, x: Tensor) -> Tensor:
        return self.gate.pool(x)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate.read(x) if self.multiplies else (x, self.pool(x))

    def logits(self, u: Tensor) -> Tensor:
        u = self.gate.logits(u)
        for _ in range(self.passes):
            for connection in self.connections:
                u = self.gate.logits(self.gate.pool(connection(u)[..., None, None]))
        return u

    def squash(self, z: Tensor) -> Tensor:
        return self.gate.squash(z)

    @torch.jit.ignore
    def inference_form(self, conv: nn.Module | None = None) -> GateForm | None:
        if isinstance(self.gate, BottleneckGate) and are_norms(self.connections):
            return self.gate.inference_form(conv, list(self.connections) * self.passes)
        return super().inference_form(conv)


class RecurrentSE(Recurrent):
    """:class:`SE` applied k times."""
    kind = SE


class RecurrentECA(Recurrent):
    """:class:`ECA` applied k times."""
    kind = ECA


class RecurrentSPA(Recurrent):
    """:class:`SPA` applied k times."""
    kind = SPA


def are_norms(modules: nn.ModuleList) -> bool:
    """Whether all connections are affine in eval mode."""
    return all(isinstance(m, nn.BatchNorm1d | ChannelAffine) for m in modules)


def connections(
        channels: int, steps: int, connect: str, share: bool, fixed_stats: bool, **where: Any,
) -> tuple[nn.ModuleList, int]:
    """What stands between k applications of a gate: k - 1 modules that are passed once, or one that is k - 1 times."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f'A recurrent gate is applied 1 to {MAX_STEPS} times, not {steps}.')
    count, passes = (min(1, steps - 1), steps - 1) if share else (steps - 1, 1)
    return nn.ModuleList(_connection(connect, channels, fixed_stats, **where) for _ in range(count)), passes


def _connection(connect: str, channels: int, fixed_stats: bool, **where: Any) -> nn.Module:
    if connect == 'bn':
        return (ChannelAffine if fixed_stats else nn.BatchNorm1d)(channels, **where)
    if connect == 'rational':
        return Rational(**where)
    try:
        return create_act_layer(connect).to(**where)
    except (AttributeError, KeyError):
        raise ValueError(
            f"Unknown connection {connect!r} of a recurrent gate; it takes 'bn', 'rational' or the name of an "
            "activation of timm's, such as 'relu'.") from None
