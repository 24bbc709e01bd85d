"""DIA-LSTM: the recurrent units of a stage, whose state passes from block to block."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .forms import GateForm, InferenceForm, PointwiseConv2d, swallow
from .lstm_cells import LightLSTMCell, SqueezedLSTMCell, StandardLSTMCell
from .lstm_step import Joined, can_join
from .shared import SharedUnit

MAX_CELLS = 3
_CELLS = {'squeezed': SqueezedLSTMCell, 'standard': StandardLSTMCell, 'light': LightLSTMCell}


class RecurrentUnit(SharedUnit):
    """What both forms of DIA-LSTM share: ``cells``, and a state [h_1, c_1, h_2, ...] of (B, C), zeros at first.

    ``first`` is a layer before the cells, or None.
    """

    def __init__(self, channels: int, cells: Iterable[nn.Module], first: nn.Module | None = None) -> None:
        super().__init__()
        self.channels, self.first, self.cells = channels, first, nn.ModuleList(cells)

    def start(self, x: Tensor) -> list[Tensor]:
        zero = x.new_zeros([1, 1]).expand(x.shape[0], self.channels)  # keeping it for the backward pass costs nothing
        return [zero] * (2 * len(self.cells))

    def excite(self, u: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if self.first is not None:
            u = self.first(u)
        after: list[Tensor] = []
        place = 2 * len(self.cells)
        for n, cell in enumerate(self.cells):
            u, c = cell(u, state[2 * n], state[2 * n + 1], state[place:place + cell.handed])
            place += cell.handed
            after.append(u)
            after.append(c)
        return u, after


class SharedLSTM(RecurrentUnit):
    """DIA-LSTM, (h, c) = LSTM(GAP(a), h', c'), v = h: DIA paper, Eq. 4.

    Cells after the first are standard ones, as the count of Table 12 needs, fed with the hidden state of the one
    before; the last one's hidden state is v.

    Args:
        channels: Channels C of the stage's feature maps.
        cell: 'squeezed' (the paper's), 'light' or 'standard'.
        cells: Stacked cells, 1 to 3.
        rd_ratio: Hidden width over C of the squeezed cell, over C / 2 of the light one (1 / r; default 1/4).
        act: Output activation of all cells: 'sigmoid', 'tanh' or 'relu'; by default tanh in the standard cell and
            sigmoid in the others.
        device, dtype: Where the parameters are, and their type.

    Raises:
        ValueError: An argument is out of range.
        TypeError: ``rd_ratio`` for a standard cell.
    """

    options = {'rd_ratio': 'rd_ratio', 'dia_cell': 'cell', 'dia_cells': 'cells', 'dia_act': 'act'}

    def __init__(
            self, channels: int, cell: str = 'squeezed', cells: int = 1, rd_ratio: float | None = None,
            act: str | None = None, **where: Any) -> None:
        if cell not in _CELLS:
            raise ValueError(f"Unknown cell {cell!r}; cells: {', '.join(_CELLS)}.")
        if not 1 <= cells <= MAX_CELLS:
            raise ValueError(f'{cells} stacked cells are out of range: a unit has 1 to {MAX_CELLS}.')
        if rd_ratio is not None and cell == 'standard':
            raise TypeError("A standard cell squeezes nothing and takes no rd_ratio; 'squeezed' and 'light' do.")
        where['act'] = act or ('tanh' if cell == 'standard' else 'sigmoid')
        ratio = {} if rd_ratio is None else {'rd_ratio': rd_ratio}
        super().__init__(channels, [
            _CELLS[cell](channels, **ratio, **where), *(StandardLSTMCell(channels, **where) for _ in range(cells - 1))])

    def hand_out(self, x: Tensor, blocks: int) -> Sequence[Sequence[Any]]:
        cells = [cell for cell in self.cells if cell.handed]
        if not cells or not all(can_join(cell, x) for cell in cells):
            return super().hand_out(x, blocks)
        by_cell = [Joined(cell, blocks).hand_out(x) for cell in cells]
        return [[thing for own in block for thing in own] for block in zip(*by_cell, strict=True)]

    @torch.jit.ignore
    def inference_form(self, convs: Sequence[nn.Module]) -> GateForm:
        firsts, cells = zip(*(cell.inference_form() for cell in self.cells), strict=True)
        first = firsts[0]
        squeezes: list[nn.Module | None] = [None] * len(convs)
        reads, rest = 'output', first
        if convs and all(isinstance(conv, PointwiseConv2d) for conv in convs):
            reads, rest = 'projected' if first is None else 'input', None
            if first is not None:
                squeezes = [swallow(first.weight, first.bias, conv) for conv in convs]
        return GateForm(reads, None, InferenceLSTM(self.channels, cells, rest).train(False), squeezes)


class SharedLightLSTM(SharedLSTM):
    """DIA-LSTM of the light cell; arguments as in the base class, without ``cell``."""

    options = {key: value for key, value in SharedLSTM.options.items() if key != 'dia_cell'}

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels, 'light', **kwargs)


class InferenceLSTM(InferenceForm, RecurrentUnit):
    """DIA-LSTM with merged matrices; ``first`` is its first layer where the blocks have not swallowed that."""
