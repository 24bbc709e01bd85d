"""DIA-LSTM: the recurrent units of a stage, whose state passes from block to block."""

import torch
import torch.nn.functional as F
from torch import nn

from .pooling import average_pool
from .shared import SharedUnit

_ACTIVATIONS = ('sigmoid', 'tanh', 'relu')
MAX_CELLS = 3


class _LSTMCell(nn.Module):
    """What all cells have in common; subclasses give the four gates' pre-activations.

    c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c), with h', c' the state before.
    """

    def __init__(self, act: str) -> None:
        super().__init__()
        if act not in _ACTIVATIONS:
            raise ValueError(f"The output activation of a cell is one of {', '.join(_ACTIVATIONS)}, not {act!r}.")
        self.act = act

    def gates(self, y: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Pre-activations (B, 4C) of the gates i, f, g, o, from input and hidden state (B, C)."""
        raise NotImplementedError

    def forward(self, y: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Input, hidden and cell state, all (B, C), to the new hidden and cell state."""
        i, f, g, o = self.gates(y, h).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        if self.act == 'sigmoid':
            squashed = c.sigmoid()
        elif self.act == 'tanh':
            squashed = c.tanh()
        else:
            squashed = c.relu()
        return o.sigmoid() * squashed, c


class SqueezedLSTMCell(_LSTMCell):
    """The modified cell of the DIA paper, section 4.2.2: both inputs squeezed to C * rd_ratio values.

    (i, f, g, o) = V relu(A y + a) + d + W relu(B h + b) + e, about 10 C^2 rd_ratio parameters. The published counts
    need the biases a, b, d, e.

    Args:
        channels: Channels C.
        rd_ratio: Hidden width over C, 1 / r.
        act: Activation of the cell state at the output.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 4,
            act: str = 'sigmoid',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(act)
        dd = {'device': device, 'dtype': dtype}
        hidden = max(1, round(channels * rd_ratio))
        self.w_ih = nn.Sequential(
            nn.Linear(channels, hidden, **dd), nn.ReLU(), nn.Linear(hidden, 4 * channels, **dd))
        self.w_hh = nn.Sequential(
            nn.Linear(channels, hidden, **dd), nn.ReLU(), nn.Linear(hidden, 4 * channels, **dd))

    def gates(self, y: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return self.w_ih(y) + self.w_hh(h)


class StandardLSTMCell(_LSTMCell):
    """The standard cell, (i, f, g, o) = V y + d + W h + e, 8 C^2 + 8 C parameters.

    Args:
        channels: Channels C.
        act: Activation of the cell state at the output, tanh in the standard cell.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
            self,
            channels: int,
            act: str = 'tanh',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(act)
        self.w_ih = nn.Linear(channels, 4 * channels, device=device, dtype=dtype)
        self.w_hh = nn.Linear(channels, 4 * channels, device=device, dtype=dtype)

    def gates(self, y: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return self.w_ih(y) + self.w_hh(h)


class LightLSTMCell(_LSTMCell):
    """The light cell: a bottleneck on the input, then four gates that see every channel alone (DIA paper, Eq. 5).

    y' = V relu(U y), (i, f, g, o) = w * y' + u * h + b, C^2 rd_ratio + 12 C parameters. The paper only draws it; this
    reading meets its counts, see docs/attention.md.

    w and u start as a linear layer of two inputs does, uniform in +-sqrt(1/2), and not at 0: at 0 the bottleneck has
    no gradient.

    Args:
        channels: Channels C.
        rd_ratio: Hidden width over C / 2, 1 / r.
        act: Activation of the cell state at the output.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 4,
            act: str = 'sigmoid',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(act)
        dd = {'device': device, 'dtype': dtype}
        hidden = max(1, round(channels * rd_ratio / 2))
        self.fc1 = nn.Linear(channels, hidden, bias=False, **dd)
        self.fc2 = nn.Linear(hidden, channels, bias=False, **dd)
        # Flat, as the scale and shift of a norm are, so that timm's rule by rank exempts them from weight decay.
        self.weight_ih = nn.Parameter(torch.empty(4 * channels, **dd))
        self.weight_hh = nn.Parameter(torch.empty(4 * channels, **dd))
        self.bias = nn.Parameter(torch.zeros(4 * channels, **dd))
        nn.init.uniform_(self.weight_ih, -(0.5**0.5), 0.5**0.5)
        nn.init.uniform_(self.weight_hh, -(0.5**0.5), 0.5**0.5)

    def gates(self, y: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        y = self.fc2(F.relu(self.fc1(y)))
        return y.repeat(1, 4) * self.weight_ih + h.repeat(1, 4) * self.weight_hh + self.bias


_CELLS = {'squeezed': SqueezedLSTMCell, 'standard': StandardLSTMCell, 'light': LightLSTMCell}


class SharedLSTM(SharedUnit):
    """DIA-LSTM, (h, c) = LSTM(GAP(a), h', c'), v = h: DIA paper, Eq. 4.

    The state is a list [h_1, c_1, h_2, c_2, ...] of (B, C), two a cell, zeros before the first block. Cells after the
    first are standard ones, as the count of Table 12 needs, fed with the hidden state of the one before; the last
    one's hidden state is v.

    Args:
        channels: Channels C of the stage's feature maps.
        cell: 'squeezed' (the paper's), 'light' or 'standard'.
        cells: Stacked cells, 1 to 3.
        rd_ratio: Hidden width over C of the squeezed cell, over C / 2 of the light one (1 / r; default 1/4).
        act: Output activation of all cells: 'sigmoid', 'tanh' or 'relu'; by default tanh in the standard cell and
            sigmoid in the others.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: An argument is out of range.
        TypeError: ``rd_ratio`` for a standard cell.
    """

    def __init__(
            self,
            channels: int,
            cell: str = 'squeezed',
            cells: int = 1,
            rd_ratio: float | None = None,
            act: str | None = None,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"Unknown cell {cell!r}; cells: {', '.join(_CELLS)}.")
        if not 1 <= cells <= MAX_CELLS:
            raise ValueError(f'{cells} stacked cells are out of range: a unit has 1 to {MAX_CELLS}.')
        if rd_ratio is not None and cell == 'standard':
            raise TypeError("A standard cell squeezes nothing and takes no rd_ratio; 'squeezed' and 'light' do.")
        if rd_ratio is not None and not 0 < rd_ratio <= 1:
            raise ValueError(f'rd_ratio={rd_ratio} is out of range; it is the hidden width over C, such as 0.25.')
        act = act or ('tanh' if cell == 'standard' else 'sigmoid')
        dd = {'device': device, 'dtype': dtype}
        kwargs = {} if rd_ratio is None else {'rd_ratio': rd_ratio}
        self.channels = channels
        self.cells = nn.ModuleList([_CELLS[cell](channels, act=act, **kwargs, **dd)])
        self.cells.extend([StandardLSTMCell(channels, act=act, **dd) for _ in range(cells - 1)])

    def start(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Zeros (B, C), two a cell, on the device and in the dtype of the stage's input."""
        state: list[torch.Tensor] = []
        for _ in self.cells:
            state.append(x.new_zeros([x.shape[0], self.channels]))
            state.append(x.new_zeros([x.shape[0], self.channels]))
        return state

    def pool(self, a: torch.Tensor) -> torch.Tensor:
        """Global average pooling, (B, C, H, W) -> (B, C)."""
        return average_pool(a).flatten(1)

    def excite(self, u: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        after: list[torch.Tensor] = []
        for n, cell in enumerate(self.cells):
            u, c = cell(u, state[2 * n], state[2 * n + 1])
            after.append(u)
            after.append(c)
        return u, after
