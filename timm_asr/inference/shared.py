"""Units that a stage shares (DIA) as inference needs them: what a convolution swallows is each block's own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..gates.dia_lstm import LightLSTMCell, SharedLSTM, SqueezedLSTMCell, StandardLSTMCell
from ..gates.pointwise import PointwiseConv2d
from ..gates.se import SE
from ..gates.shared import SharedGate, SharedUnit
from ..gates.spa import SPA
from .gates import double, has_inference_form, inference_gate, linear, swallow


class InferenceSharedGate(SharedUnit):
    """A gate without state: what blocks share of it after pooling and after the layers of their own."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def excite(self, u: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.gate(u), state


class _Cell(nn.Module):
    """An LSTM cell whose four gates come from one product and one sigmoid, tanh(g) being 2 sigmoid(2 g) - 1.

    Subclasses double the rows of g beforehand. Few calls are what counts for a single image.
    """

    def __init__(self, act: str) -> None:
        super().__init__()
        self.act = act

    def gates(self, u: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Pre-activations (B, 4C) of the gates i, f, 2g, o."""
        raise NotImplementedError

    def forward(self, u: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Input, after the first layer of the cell if it has one, and state (B, C) to the new state."""
        i, f, g, o = self.gates(u, h).sigmoid().chunk(4, 1)
        c = torch.addcmul(f * c, i, g, value=2.0).sub_(i)
        if self.act == 'sigmoid':
            squashed = c.sigmoid()
        elif self.act == 'tanh':
            squashed = c.tanh()
        else:
            squashed = c.relu()
        return o * squashed, c


class MergedCell(_Cell):
    """Input and hidden state side by side, times one matrix: [V W] [u; h] + (d + e).

    The squeezed cell: [V W] relu([u; B h + b]) + (d + e), with u = A y + a from before.

    Args:
        cell: The cell in its training form.
    """

    def __init__(self, cell: SqueezedLSTMCell | StandardLSTMCell) -> None:
        super().__init__(cell.act)
        squeezed = isinstance(cell, SqueezedLSTMCell)
        ih, hh = (cell.w_ih[2], cell.w_hh[2]) if squeezed else (cell.w_ih, cell.w_hh)
        weight = torch.cat([double(ih.weight), double(hh.weight)], dim=1)
        self.weight = nn.Parameter(_doubled(weight).to(ih.weight))
        self.bias = nn.Parameter(_doubled(double(ih.bias) + double(hh.bias)).to(ih.weight))
        self.squeeze_weight = nn.Parameter(cell.w_hh[0].weight.detach().clone()) if squeezed else None
        self.squeeze_bias = nn.Parameter(cell.w_hh[0].bias.detach().clone()) if squeezed else None

    def gates(self, u: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        if self.squeeze_weight is None:
            return F.linear(torch.cat([u, h], dim=1), self.weight, self.bias)
        h = F.linear(h, self.squeeze_weight, self.squeeze_bias)
        return F.linear(torch.cat([u, h], dim=1).relu_(), self.weight, self.bias)


class MergedLightCell(_Cell):
    """The light cell, its scale of the input merged: (diag(w) V) relu(u) + b + w' * h, u = U y from before.

    Args:
        cell: The cell in its training form.
    """

    def __init__(self, cell: LightLSTMCell) -> None:
        super().__init__(cell.act)
        weight = double(cell.fc2.weight).repeat(4, 1) * double(cell.weight_ih)[:, None]
        self.weight = nn.Parameter(_doubled(weight).to(cell.fc2.weight))
        self.bias = nn.Parameter(_doubled(double(cell.bias)).to(cell.fc2.weight))
        self.weight_hh = nn.Parameter(_doubled(double(cell.weight_hh)).to(cell.fc2.weight))

    def gates(self, u: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        inputs = F.linear(u.relu(), self.weight, self.bias).unflatten(1, (4, -1))
        return torch.addcmul(inputs, h.unsqueeze(1), self.weight_hh.view(4, -1)).flatten(1)


def _doubled(rows: torch.Tensor) -> torch.Tensor:
    i, f, g, o = rows.chunk(4)
    return torch.cat([i, f, 2 * g, o])


class InferenceLSTM(SharedUnit):
    """DIA-LSTM with merged matrices; the state is that of :class:`SharedLSTM`.

    Args:
        unit: The unit in its training form.
        first: The first layer of its first cell, where the blocks have not swallowed it.
    """

    def __init__(self, unit: SharedLSTM, first: nn.Linear | None) -> None:
        super().__init__()
        self.channels = unit.channels
        self.first = first
        self.cells = nn.ModuleList(
            MergedLightCell(cell) if isinstance(cell, LightLSTMCell) else MergedCell(cell) for cell in unit.cells)

    def start(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Zeros (B, C), two a cell."""
        state: list[torch.Tensor] = []
        for _ in self.cells:
            state.append(x.new_zeros([x.shape[0], self.channels]))
            state.append(x.new_zeros([x.shape[0], self.channels]))
        return state

    def pool(self, a: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(a, 1).flatten(1)

    def excite(self, u: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if self.first is not None:
            u = self.first(u)
        after: list[torch.Tensor] = []
        for n, cell in enumerate(self.cells):
            u, c = cell(u, state[2 * n], state[2 * n + 1])
            after.append(u)
            after.append(c)
        return u, after


@dataclass
class SharedForm:
    """How a shared unit runs at inference.

    ``reads`` and ``pool`` are those of :class:`GateForm`; ``squeezes`` holds a layer for each block, which acts on the
    pooled values before the unit does, or None.
    """

    reads: str
    pool: nn.Module | None
    squeezes: list[nn.Module | None]
    unit: SharedUnit


def has_shared_form(unit: SharedUnit) -> bool:
    """Whether :func:`shared_form` knows this unit."""
    return isinstance(unit, SharedLSTM) or (type(unit) is SharedGate and has_inference_form(unit.gate))


@torch.no_grad()
def shared_form(unit: SharedUnit, convs: list[nn.Module]) -> SharedForm:
    """The inference form of a unit that has one.

    Args:
        unit: The unit, in eval mode.
        convs: The last convolution of each block, norms folded.
    """
    if isinstance(unit, SharedLSTM):
        return _lstm(unit, convs)
    forms = [inference_gate(unit.gate, conv) for conv in convs]
    first = forms[0]
    shared = first.gate
    squeezes: list[nn.Module | None] = [None] * len(convs)
    if first.reads == 'input':
        if isinstance(unit.gate, SE | SPA):
            squeezes = [linear(form.gate.weight1, form.gate.bias1, form.gate.weight1) for form in forms]
            first.gate.weight1 = first.gate.bias1 = None
        else:  # nothing is left to share
            squeezes, shared = [form.gate for form in forms], nn.Identity()
    return SharedForm(first.reads, first.pool, squeezes, InferenceSharedGate(shared))


def first_layer(unit: SharedLSTM) -> nn.Linear | None:
    """The layer that a unit's first cell applies to its input before anything else."""
    cell = unit.cells[0]
    if isinstance(cell, SqueezedLSTMCell):
        return cell.w_ih[0]
    return cell.fc1 if isinstance(cell, LightLSTMCell) else None


def _lstm(unit: SharedLSTM, convs: list[nn.Module]) -> SharedForm:
    first = first_layer(unit)
    none: list[nn.Module | None] = [None] * len(convs)
    if not all(isinstance(conv, PointwiseConv2d) for conv in convs):
        return SharedForm('output', None, none, InferenceLSTM(unit, first))
    if first is None:
        return SharedForm('projected', None, none, InferenceLSTM(unit, None))
    return SharedForm(
        'input', None, [swallow(first.weight, first.bias, conv) for conv in convs], InferenceLSTM(unit, None))
