"""The cells of DIA-LSTM, and each as inference needs it, with matrices merged and few calls."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bottleneck import hidden_width
from .forms import double
from .lstm_step import OUTPUT_BACKWARD, Step, advance, squash


class LSTMCell(nn.Module):
    """What all cells have in common; subclasses give the four gates' pre-activations.

    c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c), with h', c' the state before.

    Args:
        act: Activation of the cell state at the output: 'sigmoid', 'tanh' or 'relu'.
        handed: How many things :class:`~timm_asr.gates.lstm_step.Joined` hands to each block.

    Raises:
        ValueError: The activation is another.
    """

    def __init__(self, act: str, handed: int = 0) -> None:
        super().__init__()
        if act not in OUTPUT_BACKWARD:
            raise ValueError(f"The output activation of a cell is one of {', '.join(OUTPUT_BACKWARD)}, not {act!r}.")
        self.act, self.handed = act, handed

    def gates(self, y: Tensor, h: Tensor) -> Tensor:
        """Pre-activations (B, 4C) of the gates i, f, g, o."""
        return self.w_ih(y) + self.w_hh(h)

    def forward(self, y: Tensor, h: Tensor, c: Tensor, handed: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The new hidden and cell state, from input, hidden and cell state (B, C).

        ``handed`` is this block's part of what :class:`Joined` hands out, or empty.
        """
        if not torch.jit.is_scripting() and handed:
            joined: Any = handed[0]
            return Step.apply(joined, y, h, c, *joined.parameters, *handed[1:])[:2]
        return advance(self.gates(y, h), c, self.act)

    @torch.jit.ignore
    def layers(self) -> list[nn.Linear]:
        """What :class:`Joined` joins: first layers first, that for the input before that for the hidden state."""
        return []

    @torch.jit.ignore
    def inference_form(self) -> tuple[nn.Linear | None, nn.Module]:
        """The layer that the input passes before anything else, if any, and the cell fed with what that puts out."""
        raise NotImplementedError


class SqueezedLSTMCell(LSTMCell):
    """The modified cell of the DIA paper, section 4.2.2: both inputs squeezed to C * rd_ratio values.

    (i, f, g, o) = V relu(A y + a) + d + W relu(B h + b) + e, about 10 C^2 rd_ratio parameters. The published counts
    need the biases a, b, d, e.
    """

    def __init__(self, channels: int, rd_ratio: float = 1 / 4, act: str = 'sigmoid', **where: Any) -> None:
        super().__init__(act, handed=6)
        hidden = hidden_width(channels, rd_ratio)
        self.w_ih, self.w_hh = (
            nn.Sequential(nn.Linear(channels, hidden, **where), nn.ReLU(), nn.Linear(hidden, 4 * channels, **where))
            for _ in range(2))

    @torch.jit.ignore
    def layers(self) -> list[nn.Linear]:
        return [self.w_ih[0], self.w_hh[0], self.w_ih[2], self.w_hh[2]]  # type: ignore[list-item]

    @torch.jit.ignore
    def inference_form(self) -> tuple[nn.Linear | None, nn.Module]:
        first, squeeze, ih, hh = self.layers()
        return first, MergedCell(self.act, ih, hh, squeeze)


class StandardLSTMCell(LSTMCell):
    """The standard cell, (i, f, g, o) = V y + d + W h + e, 8 C^2 + 8 C parameters."""

    def __init__(self, channels: int, act: str = 'tanh', **where: Any) -> None:
        super().__init__(act, handed=4)
        self.w_ih = nn.Linear(channels, 4 * channels, **where)
        self.w_hh = nn.Linear(channels, 4 * channels, **where)

    @torch.jit.ignore
    def layers(self) -> list[nn.Linear]:
        return [self.w_ih, self.w_hh]

    @torch.jit.ignore
    def inference_form(self) -> tuple[nn.Linear | None, nn.Module]:
        return None, MergedCell(self.act, self.w_ih, self.w_hh)


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

    def gates(self, y: Tensor, h: Tensor) -> Tensor:
        y = self.fc2(F.relu(self.fc1(y)))
        return y.repeat(1, 4) * self.weight_ih + h.repeat(1, 4) * self.weight_hh + self.bias

    @torch.jit.ignore
    def inference_form(self) -> tuple[nn.Linear | None, nn.Module]:
        return self.fc1, MergedLightCell(self)


class _InferenceCell(nn.Module):
    """A cell whose four gates come from one product and one sigmoid, tanh(g) being 2 sigmoid(2 g) - 1.

    Few calls are what counts for a single image.
    """

    def __init__(self, act: str, weight: Tensor, bias: Tensor, like: Tensor) -> None:
        super().__init__()
        self.act, self.handed = act, 0
        self.weight, self.bias = nn.Parameter(_twice_g(weight).to(like)), nn.Parameter(_twice_g(bias).to(like))

    def gates(self, u: Tensor, h: Tensor) -> Tensor:
        """Pre-activations (B, 4C) of the gates i, f, 2g, o."""
        raise NotImplementedError

    def forward(self, u: Tensor, h: Tensor, c: Tensor, handed: list[Tensor]) -> tuple[Tensor, Tensor]:
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
        self.weight_hh = nn.Parameter(_twice_g(double(cell.weight_hh)).to(cell.fc2.weight))

    def gates(self, u: Tensor, h: Tensor) -> Tensor:
        inputs = F.linear(u.relu(), self.weight, self.bias).unflatten(1, (4, -1))
        return torch.addcmul(inputs, h.unsqueeze(1), self.weight_hh.view(4, -1)).flatten(1)


def _twice_g(rows: Tensor) -> Tensor:
    """The rows of i, f, 2g and o, from those of i, f, g and o."""
    i, f, g, o = rows.chunk(4)
    return torch.cat([i, f, 2 * g, o])
