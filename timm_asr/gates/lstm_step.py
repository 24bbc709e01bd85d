"""The step of a DIA-LSTM cell, and the same in few operations for the blocks of a stage in training."""

from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import alike, gradients_of, is_plain, needs_gradient
from .passes import version


def squash(c: Tensor, act: str) -> Tensor:
    """The output activation of a cell."""
    if act == 'sigmoid':
        return c.sigmoid()
    return c.tanh() if act == 'tanh' else c.relu()


def advance(u: Tensor, c: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """The new hidden and cell state: c = sigmoid(f) * c' + sigmoid(i) * tanh(g), h = sigmoid(o) * act(c).

    Args:
        u: Pre-activations of the gates i, f, g, o, (B, 4C).
        c: Cell state c', (B, C).
        act: 'sigmoid', 'tanh' or 'relu'.
    """
    i, f, g, o = u.chunk(4, 1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return o.sigmoid() * squash(c, act), c


OUTPUT_BACKWARD = {
    'sigmoid': torch.ops.aten.sigmoid_backward, 'tanh': torch.ops.aten.tanh_backward,
    'relu': lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
}


def parameters_of(cell: nn.Module) -> list[Tensor]:
    """Weight and bias of each layer for the input, then of that for the hidden state; first layers first."""
    return [t for layer in cell.layers() for t in (layer.weight, layer.bias)]


def can_join(cell: nn.Module, x: Tensor) -> bool:
    """Whether a training step begins with x, the input of a stage, that :class:`Joined` can make cheaper."""
    if isinstance(x, torch.fx.Proxy) or not all(map(is_plain, cell.layers())):  # a tracer writes down what is asked for
        return False
    parameters = parameters_of(cell)
    return needs_gradient([x, *parameters]) and alike(x, *parameters)


class Joined:
    """The linear layers of a cell as the blocks of a stage use them in a training step, joined to fewer products.

    Input and hidden state pass one product. The joined weights are not kept for the backward pass, but joined again
    there, once for all blocks. Gradients of weights are products of two factors, summed over the blocks. Each block is
    handed tokens without content and sends its factors back as their gradients; then one product does it for all.

    Args:
        cell: The cell.
        blocks: How many blocks.
    """

    def __init__(self, cell: nn.Module, blocks: int) -> None:
        self.act, self.blocks, self.left = cell.act, blocks, blocks
        self.parameters = parameters_of(cell)
        self.joined: list[Tensor] = []
        self.versions: list[int] = []
        self.biases: list[Tensor] = []

    def hand_out(self, x: Tensor) -> list[list[Any]]:
        """For each block this, and its tokens; x is the stage's input."""
        tokens = _HandOut.apply(self, len(x), *self.parameters)
        return [[self, *own] for own in zip(*(token.unbind() for token in tokens), strict=True)]

    def weights(self) -> list[Tensor]:
        """The joined weight of each layer; the last one adds what it makes of input and hidden state."""
        versions = [version(t) for t in self.parameters]
        if versions != self.versions:
            *first, last = zip(self.parameters[::4], self.parameters[2::4], strict=True)
            self.joined, self.versions = [*(torch.block_diag(*pair) for pair in first), torch.cat(last, 1)], versions
        return self.joined

    def forget(self) -> None:
        """Let go of the weights."""
        self.joined, self.versions = [], []


class _HandOut(torch.autograd.Function):
    """Tokens (N, B, D) for N blocks. Layer by layer, the last one first: for its output's gradient, for its input.

    The first layer's input has two: the cell's input and the hidden state.
    """

    @staticmethod
    def forward(ctx: Any, joined: Joined, images: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.joined = joined
        ctx.set_materialize_grads(False)
        *first, last = zip(parameters[1::4], parameters[3::4], strict=True)
        joined.biases = [*(torch.cat(pair) for pair in first), last[0] + last[1]]
        *widths, both = (n for weight in reversed(joined.weights()) for n in weight.shape)
        nothing = parameters[0].new_empty([1])
        return tuple(nothing.expand(joined.blocks, images, n) for n in (*widths, both // 2, both // 2))

    @staticmethod
    def backward(ctx: Any, *factors: Tensor | None) -> tuple[Any, ...]:
        ctx.joined.forget()
        if factors[0] is None:  # in a gradient of a gradient the parameters get theirs directly
            return None, None, *[None] * len(ctx.joined.parameters)
        *deeper, of, y, h = (factor.view(-1, factor.shape[2]) for factor in factors)  # type: ignore[union-attr]
        layers, grads = [(of, y, h)], []
        if deeper:
            layers.append((deeper[0], *deeper[1].chunk(2, 1)))
        for n, (of, y, h) in enumerate(layers, 1):
            last = n == len(layers)
            of_y, of_h = (of, of) if last else of.chunk(2, 1)
            bias_y, bias_h = (of.sum(0), of.sum(0)) if last else of.sum(0).chunk(2)
            grads += [of_y.t() @ y, bias_y, of_h.t() @ h, bias_h]
        return None, None, *grads


def _step(act: str, y: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """What :class:`Step` computes, in ordinary operations."""
    y, h = F.linear(y, *parameters[:2]), F.linear(h, *parameters[2:4])
    if len(parameters) > 4:
        y, h = F.linear(y.relu(), *parameters[4:6]), F.linear(h.relu(), *parameters[6:])
    return advance(y + h, c, act)


class Step(torch.autograd.Function):
    """Input y and state h, c to the new state, and what is kept of c for the backward pass.

    Both gated products are gated linear units, a * sigmoid(b), whose gradients are one operation each.
    """

    @staticmethod
    def forward(ctx: Any, joined: Joined, y: Tensor, h: Tensor, c: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        *before, (bias, weight) = zip(joined.biases, joined.weights(), strict=True)
        u, hidden = torch.cat([y, h], 1), []
        for first_bias, first_weight in before:
            hidden.append(u := torch.addmm(first_bias, u, first_weight.t()).relu_())
        i, f, g, o = torch.addmm(bias, u, weight.t()).chunk(4, 1)
        joined.left -= 1
        if joined.left == 0:
            joined.forget()
        inner = torch.cat([c, g.tanh(), f, i], 1)
        kept, added = F.glu(inner, 1).chunk(2, 1)
        c = kept + added
        outer = torch.cat([squash(c, joined.act), o], 1)
        ctx.joined = joined
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inner, outer, y, h, *joined.parameters, *hidden)
        return F.glu(outer, 1), c, inner

    @staticmethod
    def backward(ctx: Any, of_h: Tensor | None, of_c: Tensor | None, of_kept: Tensor | None) -> tuple[Any, ...]:
        inner, outer, y, h, *tensors = ctx.saved_tensors
        count = len(ctx.joined.parameters)
        parameters, hidden = tensors[:count], tensors[count:]
        of_h = torch.zeros_like(h) if of_h is None else of_h
        of_parameters: list[Tensor | None] = [None] * count
        factors: list[Tensor | None] = [None] * (3 + 2 * len(hidden))
        if torch.is_grad_enabled():
            of_c = torch.zeros_like(h) if of_c is None else of_c
            inputs = (y, h, inner.chunk(4, 1)[0], *parameters)
            of_y, of_h, of_c, *of_parameters = gradients_of(partial(_step, ctx.joined.act), inputs, (of_h, of_c))
        else:
            of_squashed, of_o = torch.ops.aten.glu_backward(of_h, outer, 1).chunk(2, 1)
            of_squashed = OUTPUT_BACKWARD[ctx.joined.act](of_squashed, outer.chunk(2, 1)[0])
            of_c = of_squashed if of_c is None else of_c + of_squashed
            twice, pairs = of_c[:, None, None].expand(-1, 1, 2, -1), inner.unflatten(1, (2, 2, -1))
            of_c, of_g, of_f, of_i = torch.ops.aten.glu_backward(twice, pairs, 1).view(len(h), -1).chunk(4, 1)
            of_g = torch.ops.aten.tanh_backward(of_g, inner.chunk(4, 1)[1])
            of = torch.cat([of_i, of_f, of_g, of_o], 1)
            factors, (*before, weight) = [of], ctx.joined.weights()
            for u, first_weight in zip(hidden, before, strict=True):
                of = torch.ops.aten.threshold_backward(of @ weight, u, 0)
                factors += [u, of]
                weight = first_weight
            factors += [y, h]
            of_y, of_h = (of @ weight).chunk(2, 1)
        if of_kept is not None:  # from the gradient of a gradient
            of_c = of_c + of_kept.chunk(4, 1)[0]
        return None, of_y, of_h, of_c, *of_parameters, *factors
