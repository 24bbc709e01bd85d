"""The cells of DIA-LSTM: their step, and each as inference needs it, with matrices merged and few calls."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bottleneck import hidden_width
from .forms import double
from .fused import gradients_of, in_training_for


def squash(c: Tensor, act: str) -> Tensor:
    """The output activation of a cell."""
    if act == 'sigmoid':
        return c.sigmoid()
    return c.tanh() if act == 'tanh' else c.relu()


def _advance(u: Tensor, weight: Tensor | None, c: Tensor, act: str) -> tuple[Tensor, Tensor]:
    i, f, g, o = (u if weight is None else F.linear(u, weight)).chunk(4, 1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return o.sigmoid() * squash(c, act), c


@in_training_for(_advance)
def advance(u: Tensor, weight: Tensor | None, c: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """The new hidden and cell state: c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c).

    Args:
        u: Pre-activations (B, 4C) of the gates i, f, g, o; or (B, D), which ``weight`` makes these of.
        weight: W of u W^T, (4C, D).
        c: Cell state c', (B, C).
        act: 'sigmoid', 'tanh' or 'relu'.
    """
    kind = u.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if weight is None or u.dtype != c.dtype or casts:
        return _advance(u, weight, c, act)
    return _Advance.apply(u, weight, c, act)[:2]


_BACKWARD = {
    'sigmoid': torch.ops.aten.sigmoid_backward, 'tanh': torch.ops.aten.tanh_backward,
    'relu': lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
}


class _Advance(torch.autograd.Function):
    """Both gated products are gated linear units, a * sigmoid(b), whose gradients are one operation each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, weight: Tensor, c: Tensor, act: str) -> tuple[Tensor, ...]:
        i, f, g, o = F.linear(u, weight).chunk(4, 1)
        inner = torch.cat([c, g.tanh(), f, i], 1).unflatten(1, (2, 2, -1))  # (B, factor or gate, term, C)
        kept, added = F.glu(inner, 1).squeeze(1).unbind(1)
        c = kept + added
        outer = torch.cat([squash(c, act), o], 1)
        return F.glu(outer, 1), c, inner, outer

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.act = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, of_h: Tensor | None, of_c: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
        u, weight, c, inner, outer = ctx.saved_tensors
        of_h = torch.zeros_like(c) if of_h is None else of_h
        if torch.is_grad_enabled():
            grads = of_h, torch.zeros_like(c) if of_c is None else of_c
            return *gradients_of(lambda u, weight, c: _advance(u, weight, c, ctx.act), (u, weight, c), grads), None
        of_squashed, of_o = torch.ops.aten.glu_backward(of_h, outer, 1).chunk(2, 1)
        of_squashed = _BACKWARD[ctx.act](of_squashed, outer.chunk(2, 1)[0])
        of_c = of_squashed if of_c is None else of_c + of_squashed
        of_inner = torch.ops.aten.glu_backward(of_c[:, None, None].expand(-1, 1, 2, -1), inner, 1)
        of_g = torch.ops.aten.tanh_backward(of_inner[:, 0, 1], inner[:, 0, 1])
        of_gates = torch.cat([of_inner[:, 1, 1], of_inner[:, 1, 0], of_g, of_o], 1)
        return of_gates @ weight, of_gates.t() @ u, of_inner[:, 0, 0], None


class LSTMCell(nn.Module):
    """What all cells have in common; subclasses give the four gates' pre-activations.

    c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c), with h', c' the state before.

    What can be computed once for all blocks of a stage, ``prepare`` does: the matrices of input and hidden state stand
    side by side, with the biases as their last column. So a block takes one product instead of two and a sum.

    Args:
        act: Activation of the cell state at the output: 'sigmoid', 'tanh' or 'relu'.
        prepared: Number of tensors that ``prepare`` gives.

    Raises:
        ValueError: The activation is another.
    """

    def __init__(self, act: str, prepared: int = 0) -> None:
        super().__init__()
        if act not in _BACKWARD:
            raise ValueError(f"The output activation of a cell is one of {', '.join(_BACKWARD)}, not {act!r}.")
        self.act, self.prepared = act, prepared

    def prepare(self) -> list[Tensor]:
        """Matrices, made of the parameters, that all blocks of a stage use."""
        none: list[Tensor] = []
        return none

    def gates(self, y: Tensor, h: Tensor, one: Tensor, ready: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Pre-activations (B, 4C) of the gates i, f, g, o: themselves, or the two factors u and W of u W^T."""
        raise NotImplementedError

    def forward(
            self, y: Tensor, h: Tensor, c: Tensor, one: Tensor, ready: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The new hidden and cell state, from input, hidden and cell state (B, C), ones (B, 1) and ``prepare()``."""
        u, weight = self.gates(y, h, one, ready)
        return advance(u, weight, c, self.act)

    @torch.jit.ignore
    def first_layer(self) -> nn.Linear | None:
        """The layer that the cell applies to its input before anything else, None where there is none."""
        return None

    @torch.jit.ignore
    def inference_form(self) -> nn.Module:
        """The same cell, fed with what its first layer puts out."""
        raise NotImplementedError


class SqueezedLSTMCell(LSTMCell):
    """The modified cell of the DIA paper, section 4.2.2: both inputs squeezed to C * rd_ratio values.

    (i, f, g, o) = V relu(A y + a) + d + W relu(B h + b) + e, about 10 C^2 rd_ratio parameters. The published counts
    need the biases a, b, d, e.
    """

    def __init__(self, channels: int, rd_ratio: float = 1 / 4, act: str = 'sigmoid', **where: Any) -> None:
        super().__init__(act, prepared=2)
        hidden = hidden_width(channels, rd_ratio)
        self.w_ih, self.w_hh = (
            nn.Sequential(nn.Linear(channels, hidden, **where), nn.ReLU(), nn.Linear(hidden, 4 * channels, **where))
            for _ in range(2))

    def prepare(self) -> list[Tensor]:
        y1, y2, h1, h2 = self.w_ih[0], self.w_ih[2], self.w_hh[0], self.w_hh[2]
        zero = torch.zeros_like(y1.weight)
        row = torch.zeros_like(y1.weight[:1])
        first = torch.cat([
            torch.cat([y1.weight, zero, y1.bias.unsqueeze(1)], dim=1),  # type: ignore[list-item]
            torch.cat([zero, h1.weight, h1.bias.unsqueeze(1)], dim=1),  # type: ignore[list-item]
            torch.cat([row, row, torch.ones_like(row[:, :1])], dim=1)])  # hands the one on to the second layer
        second = torch.cat([y2.weight, h2.weight, (y2.bias + h2.bias).unsqueeze(1)], dim=1)  # type: ignore[list-item]
        return [first, second]

    def gates(self, y: Tensor, h: Tensor, one: Tensor, ready: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        return torch.relu_(F.linear(torch.cat([y, h, one], dim=1), ready[0])), ready[1]

    @torch.jit.ignore
    def first_layer(self) -> nn.Linear:
        return self.w_ih[0]  # type: ignore[return-value]

    @torch.jit.ignore
    def inference_form(self) -> nn.Module:
        return MergedCell(self.act, self.w_ih[2], self.w_hh[2], squeeze=self.w_hh[0])


class StandardLSTMCell(LSTMCell):
    """The standard cell, (i, f, g, o) = V y + d + W h + e, 8 C^2 + 8 C parameters."""

    def __init__(self, channels: int, act: str = 'tanh', **where: Any) -> None:
        super().__init__(act, prepared=1)
        self.w_ih = nn.Linear(channels, 4 * channels, **where)
        self.w_hh = nn.Linear(channels, 4 * channels, **where)

    def prepare(self) -> list[Tensor]:
        bias = (self.w_ih.bias + self.w_hh.bias).unsqueeze(1)
        return [torch.cat([self.w_ih.weight, self.w_hh.weight, bias], dim=1)]

    def gates(self, y: Tensor, h: Tensor, one: Tensor, ready: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        return torch.cat([y, h, one], dim=1), ready[0]

    @torch.jit.ignore
    def inference_form(self) -> nn.Module:
        return MergedCell(self.act, self.w_ih, self.w_hh)


class LightLSTMCell(LSTMCell):
    """The light cell: a bottleneck on the input, then four gates that see every channel alone (DIA paper, Eq. 5).

    y' = V relu(U y), (i, f, g, o) = w * y' + u * h + b, with C * rd_ratio / 2 hidden values and C^2 rd_ratio + 12 C
    parameters. The paper only draws it; this reading meets its counts, see docs/readings.md.

    w and u start as a linear layer of two inputs does, uniform in +-sqrt(1/2), and not at 0: at 0 the bottleneck has
    no gradient.
    """

    def __init__(self, channels: int, rd_ratio: float = 1 / 4, act: str = 'sigmoid', **where: Any) -> None:
        super().__init__(act)
        hidden = hidden_width(channels / 2, rd_ratio)
        self.fc1 = nn.Linear(channels, hidden, bias=False, **where)
        self.fc2 = nn.Linear(hidden, channels, bias=False, **where)
        # Flat, as the scale and shift of a norm are, so that timm's rule by rank exempts them from weight decay.
        self.weight_ih = nn.Parameter(torch.empty(4 * channels, **where))
        self.weight_hh = nn.Parameter(torch.empty(4 * channels, **where))
        self.bias = nn.Parameter(torch.zeros(4 * channels, **where))
        nn.init.uniform_(self.weight_ih, -(0.5**0.5), 0.5**0.5)
        nn.init.uniform_(self.weight_hh, -(0.5**0.5), 0.5**0.5)

    def gates(self, y: Tensor, h: Tensor, one: Tensor, ready: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        y = self.fc2(F.relu(self.fc1(y)))
        return y.repeat(1, 4) * self.weight_ih + h.repeat(1, 4) * self.weight_hh + self.bias, None

    @torch.jit.ignore
    def first_layer(self) -> nn.Linear:
        return self.fc1

    @torch.jit.ignore
    def inference_form(self) -> nn.Module:
        return MergedLightCell(self)


class _InferenceCell(nn.Module):
    """A cell whose four gates come from one product and one sigmoid, tanh(g) being 2 sigmoid(2 g) - 1.

    Few calls are what counts for a single image.
    """

    def __init__(self, act: str, weight: Tensor, bias: Tensor, like: Tensor) -> None:
        super().__init__()
        self.act = act
        self.weight, self.bias = nn.Parameter(_doubled(weight).to(like)), nn.Parameter(_doubled(bias).to(like))

    def gates(self, u: Tensor, h: Tensor) -> Tensor:
        """Pre-activations (B, 4C) of the gates i, f, 2g, o."""
        raise NotImplementedError

    def forward(self, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Input, after the first layer of the cell if it has one, and state (B, C) to the new state."""
        i, f, g, o = self.gates(u, h).sigmoid().chunk(4, 1)
        c = torch.addcmul(f * c, i, g, value=2.0).sub_(i)
        return o * squash(c, self.act), c


class MergedCell(_InferenceCell):
    """Input and hidden state side by side, times one matrix: [V W] [u; h] + (d + e).

    The squeezed cell: [V W] relu([u; B h + b]) + (d + e), with u = A y + a from before.
    """

    def __init__(self, act: str, ih: nn.Linear, hh: nn.Linear, squeeze: nn.Linear | None = None) -> None:
        weight = torch.cat([double(ih.weight), double(hh.weight)], dim=1)
        super().__init__(act, weight, double(ih.bias) + double(hh.bias), like=ih.weight)
        self.squeeze_weight = None if squeeze is None else nn.Parameter(squeeze.weight.detach().clone())
        self.squeeze_bias = None if squeeze is None else nn.Parameter(squeeze.bias.detach().clone())

    def gates(self, u: Tensor, h: Tensor) -> Tensor:
        if self.squeeze_weight is None:
            return F.linear(torch.cat([u, h], dim=1), self.weight, self.bias)
        h = F.linear(h, self.squeeze_weight, self.squeeze_bias)
        return F.linear(torch.cat([u, h], dim=1).relu_(), self.weight, self.bias)


class MergedLightCell(_InferenceCell):
    """The light cell, its scale of the input merged: (diag(w) V) relu(u) + b + w' * h, u = U y from before."""

    def __init__(self, cell: LightLSTMCell) -> None:
        weight = double(cell.fc2.weight).repeat(4, 1) * double(cell.weight_ih)[:, None]
        super().__init__(cell.act, weight, double(cell.bias), like=cell.fc2.weight)
        self.weight_hh = nn.Parameter(_doubled(double(cell.weight_hh)).to(cell.fc2.weight))

    def gates(self, u: Tensor, h: Tensor) -> Tensor:
        inputs = F.linear(u.relu(), self.weight, self.bias).unflatten(1, (4, -1))
        return torch.addcmul(inputs, h.unsqueeze(1), self.weight_hh.view(4, -1)).flatten(1)


def _doubled(rows: Tensor) -> Tensor:
    """The rows of i, f, 2g and o."""
    i, f, g, o = rows.chunk(4)
    return torch.cat([i, f, 2 * g, o])
