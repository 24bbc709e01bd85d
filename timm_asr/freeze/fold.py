"""Where a gate's constant goes: into the layer before it, the convolutions after it, or a multiplication of its own."""

import copy
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, BlurPool2d, Conv2dSame, DropPath, LayerScale2d, PReLU
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ..asr.fold import replace
from ..asr.scaled import SCALABLE, WITH_ACTIVATION, channel_dim, out_channels, scale_, scaled_names
from ..asr.wrapper import ASR
from ..gates.forms import PointwiseConv2d
from ..inference.compare import close
from ..inference.fold_bn import Tracer

# Exact types, since a subclass may do anything with its weight or input.
_CONVS = (nn.Conv2d, Conv2dSame, PointwiseConv2d)
# In eval mode, what these do to a channel is linear, and the same whatever the channel is.
_LINEAR = (
    nn.Identity, nn.Dropout, nn.Dropout2d, DropPath, nn.AvgPool2d, AvgPool2dSame, BlurPool2d, nn.AdaptiveAvgPool2d)
# f(v x) = v f(x) for v >= 0 only.
_HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, PReLU, nn.MaxPool2d)
_SUMS = (operator.add, operator.iadd, torch.add, 'add', 'add_')
_PRODUCTS = (operator.mul, operator.imul, torch.mul, 'mul', 'mul_')
_RELUS = (F.relu, torch.relu, 'relu', 'relu_')


@dataclass(frozen=True)
class Place:
    """Where the constant of a gate goes."""

    layers: tuple[str, ...] = ()  # that take it; none where it stays a multiplication
    before: bool = True  # whether they come before the gate (then their outputs are scaled), or after (their inputs)

    def __str__(self) -> str:
        if not self.layers:
            return 'kept as a multiplication'
        return f'folded into {", ".join(self.layers)}{"" if self.before else " (inputs)"}'


def find_places(model: nn.Module, constants: dict[str, torch.Tensor]) -> dict[str, Place]:
    """Where each gate's constant can go, for a model in eval mode."""
    gates = {model.get_submodule(name) for name in constants}
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    tied = {m for m in model.modules() if names[id(m)] > 1 or any(owners[id(p)] > 1 for p in m.parameters())}
    places = dict.fromkeys(constants, Place())
    for prefix, graph in _graphs(model, '', gates):
        search = _Search(model, prefix, graph, tied)
        for node in graph.nodes:
            name = f'{prefix}{node.target}' if node.op == 'call_module' else ''
            if name in constants:
                places[name] = search.place(node, constants[name])
    return places


def _graphs(module: nn.Module, prefix: str, gates: set[nn.Module]) -> Iterator[tuple[str, fx.Graph]]:
    if module in gates or not any(m in gates for m in module.modules()):
        return
    layers = {m for m in module.modules() if type(m) in SCALABLE}
    try:
        graph = Tracer(gates | layers).trace(module)
    except Exception:  # whatever the code of a model raises when it meets a symbol: part by part
        parts = [name for name, _ in module.named_children()]
    else:
        yield prefix, graph
        # Blocks that timm keeps closed to tracers can be traced on their own.
        parts = sorted({node.target for node in graph.nodes if node.op == 'call_module'})
    for name in parts:
        yield from _graphs(module.get_submodule(name), f'{prefix}{name}.', gates)


class _Search:
    """Looks around a gate in one graph."""

    def __init__(self, model: nn.Module, prefix: str, graph: fx.Graph, tied: set[nn.Module]) -> None:
        self.model, self.prefix, self.tied = model, prefix, tied
        self.calls = Counter(node.target for node in graph.nodes if node.op == 'call_module')

    def place(self, gate: fx.Node, v: torch.Tensor) -> Place:
        if self.calls[gate.target] > 1 or not gate.args or not isinstance(gate.args[0], fx.Node):
            return Place()
        if before := self._before(gate.args[0], v):
            return Place(tuple(sorted(before)))
        after = self._after(gate, v)
        return Place(tuple(sorted(after or ())), before=not after)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(f'{self.prefix}{node.target}') if node.op == 'call_module' else None

    def _passes(self, node: fx.Node, v: torch.Tensor) -> bool:
        """Whether scaling the input of a node and scaling its output are the same."""
        module = self._module(node)
        if module is None:
            function = node.op in ('call_function', 'call_method')
            return function and node.target in _RELUS and bool((v >= 0).all())
        return type(module) in _LINEAR or (type(module) in _HOMOGENEOUS and bool((v >= 0).all()))

    def _before(self, node: fx.Node, v: torch.Tensor) -> set[str] | None:
        """Names of the layers whose sum, or whose one output, a node is; None if it is anything else."""
        if len(node.users) > 1:  # somebody else reads it unscaled
            return None
        inputs = [arg for arg in node.args if isinstance(arg, fx.Node)]
        numbers = [arg for arg in node.args if isinstance(arg, int | float)]
        plain = not node.kwargs and len(inputs) + len(numbers) == len(node.args)
        if node.op in ('call_function', 'call_method') and plain:
            if node.target in _SUMS and not any(numbers):
                parts = [self._before(arg, v) for arg in inputs]
                return None if None in parts else set().union(*parts)
            if node.target in _PRODUCTS and len(inputs) == 1:
                return self._before(inputs[0], v)
        if node.op == 'call_module' and self._scales(self._module(node), v):
            return {f'{self.prefix}{node.target}'} if self.calls[node.target] == 1 else None
        return self._before(inputs[0], v) if inputs and self._passes(node, v) else None

    def _scales(self, layer: nn.Module, v: torch.Tensor) -> bool:
        layer = layer.layer if isinstance(layer, ASR) else layer
        if type(layer) not in SCALABLE or layer in self.tied or channel_dim(layer) != 1:
            return False
        act = type(getattr(layer, 'act', None)) if isinstance(layer, WITH_ACTIVATION) else nn.Identity
        if act is not nn.Identity and not (act in _HOMOGENEOUS and bool((v >= 0).all())):
            return False
        try:
            return out_channels(layer) == len(v)
        except TypeError:  # without affine parameters
            return False

    def _after(self, node: fx.Node, v: torch.Tensor) -> set[str] | None:
        """Names of the convolutions that are all that reads a node; None if anything else does."""
        layers: set[str] = set()
        for user in node.users:
            module = self._module(user)
            if type(module) in _CONVS and module not in self.tied and self.calls[user.target] == 1:
                layers.add(f'{self.prefix}{user.target}')
            elif user.op != 'output' and user.args and user.args[0] is node and self._passes(user, v):
                further = self._after(user, v)
                if not further:
                    return None
                layers |= further
            else:
                return None
        return layers or None


@torch.no_grad()
def fold_constants(model: nn.Module, constants: dict[str, torch.Tensor], places: dict[str, Place]) -> None:
    """Replace gates by constants that go where ``places`` says, in place."""
    for name, constant in constants.items():
        gate, place = model.get_submodule(name), places[name]
        new: nn.Module = nn.Identity()
        if not place.layers:
            new = LayerScale2d(len(constant)).to(next(gate.parameters()))
            new.gamma.data.copy_(constant)
        for layer_name in place.layers:
            layer = model.get_submodule(layer_name)
            layer = layer.layer if isinstance(layer, ASR) else layer
            v = constant.to(getattr(layer, scaled_names(layer)[0]))
            if place.before:
                scale_(layer, v)
            else:  # weights (C', C / groups, h, w), whose columns are what the convolution reads
                columns = v.view(layer.groups, 1, -1, 1, 1)
                layer.weight.mul_(columns.expand(-1, layer.out_channels // layer.groups, -1, -1, -1).flatten(0, 1))
        replace(model, {gate: new.train(gate.training)})


@torch.no_grad()
def checked_fold(
        model: nn.Module, constants: dict[str, torch.Tensor], places: dict[str, Place], images: Any,
) -> tuple[nn.Module, dict[str, Place]]:
    """A copy of a model in eval mode with its gates replaced, and where each constant went in the end.

    What it puts out for images, a few will do, is compared with what it puts out where all constants are
    multiplications. If rounding does not explain the difference, places are tried one by one, and one that makes a
    difference stays a multiplication. The model is left as it is.
    """
    def frozen(chosen: dict[str, Place]) -> tuple[nn.Module, list[torch.Tensor]]:
        copied = copy.deepcopy(model)
        fold_constants(copied, constants, chosen)
        return copied, [x for x in tree_leaves(copied(images)) if isinstance(x, torch.Tensor) and x.is_floating_point()]

    kept = dict.fromkeys(places, Place())
    expected = frozen(kept)[1]
    folded, found = frozen(places)
    if all(map(close, expected, found)):
        return folded, places
    for name, place in places.items():
        if place.layers and all(map(close, expected, frozen({**kept, name: place})[1])):
            kept[name] = place
    return frozen(kept)[0], kept
