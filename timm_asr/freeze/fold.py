"""Where a gate's constant goes: into the layer before it, the convolutions after it, or a multiplication of its own."""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, BlurPool2d, Conv2dSame, DropPath, LayerScale2d
from timm.layers.activations import PReLU
from torch import fx, nn

from ..asr.scaled import SCALABLE, WITH_ACTIVATION, channel_dim, out_channels, scale_, scaled_names
from ..asr.wrapper import ASR
from ..gates.pointwise import PointwiseConv2d
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
class Constant:
    """What stands for a gate from now on: y = scale * x + shift, (C,) each, one or the other possibly None."""

    scale: torch.Tensor | None
    shift: torch.Tensor | None = None

    @property
    def positive(self) -> bool:
        """Whether the constant passes a ReLU."""
        return self.shift is None and self.scale is not None and bool((self.scale >= 0).all())

    def layer(self, like: torch.Tensor) -> nn.Module:
        """The constant as a layer of its own."""
        channels = len(self.scale if self.scale is not None else self.shift)
        dd = {'device': like.device, 'dtype': like.dtype}
        if self.shift is None:
            layer = LayerScale2d(channels, **dd)
            layer.gamma.data.copy_(self.scale)
            return layer
        layer = nn.Conv2d(channels, channels, 1, groups=channels, **dd)
        layer.weight.data.copy_((torch.ones(channels) if self.scale is None else self.scale).view(-1, 1, 1, 1))
        layer.bias.data.copy_(self.shift)
        return layer


@dataclass(frozen=True)
class Place:
    """Where the constant of a gate goes."""

    gate: str
    layers: tuple[str, ...] = ()  # that take it; none where it stays a multiplication
    before: bool = True  # whether they come before the gate (then their outputs are scaled), or after (their inputs)

    def __str__(self) -> str:
        if not self.layers:
            return 'kept as a multiplication'
        return f'folded into {", ".join(self.layers)}{"" if self.before else " (inputs)"}'


def find_places(model: nn.Module, constants: dict[str, Constant]) -> dict[str, Place]:
    """Where each gate's constant can go, for a model in eval mode; parts that torch.fx cannot trace are searched part
    by part.
    """
    gates = {model.get_submodule(name) for name in constants}
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    tied = {m for m in model.modules() if names[id(m)] > 1 or any(owners[id(p)] > 1 for p in m.parameters())}
    places = {name: Place(name) for name in constants}
    for prefix, graph in _graphs(model, '', gates):
        search = _Search(model, prefix, graph, tied)
        for node in graph.nodes:
            name = f'{prefix}{node.target}' if node.op == 'call_module' else ''
            if name in constants:
                places[name] = search.place(node, name, constants[name])
    return places


def _graphs(module: nn.Module, prefix: str, gates: set[nn.Module]) -> Iterator[tuple[str, fx.Graph]]:
    if module in gates or not any(m in gates for m in module.modules()):
        return
    layers = {m for m in module.modules() if type(m) in SCALABLE}
    try:
        graph = Tracer(gates | layers).trace(module)
    except Exception:  # whatever the code of a model raises when it meets a symbol
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

    def place(self, gate: fx.Node, name: str, constant: Constant) -> Place:
        if self.calls[gate.target] > 1 or not gate.args or not isinstance(gate.args[0], fx.Node):
            return Place(name)
        before = self._before(gate.args[0], constant)
        if before:
            return Place(name, tuple(sorted(before)))
        after = self._after(gate, constant) if constant.shift is None else None
        return Place(name, tuple(sorted(after)), before=False) if after else Place(name)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(f'{self.prefix}{node.target}') if node.op == 'call_module' else None

    def _passes(self, node: fx.Node, constant: Constant) -> bool:
        """Whether scaling the input of a node and scaling its output are the same."""
        module = self._module(node)
        if module is None:
            function = node.op in ('call_function', 'call_method')
            return function and node.target in _RELUS and constant.positive
        if constant.shift is not None:
            return isinstance(module, nn.Identity | nn.Dropout | DropPath)
        return type(module) in _LINEAR or (type(module) in _HOMOGENEOUS and constant.positive)

    def _before(self, node: fx.Node, constant: Constant) -> set[str] | None:
        """Names of the layers whose sum, or whose one output, a node is; None if it is anything else."""
        if len(node.users) > 1:  # somebody else reads it unscaled
            return None
        inputs = [arg for arg in node.args if isinstance(arg, fx.Node)]
        numbers = [arg for arg in node.args if isinstance(arg, int | float)]
        plain = not node.kwargs and len(inputs) + len(numbers) == len(node.args)
        if node.op in ('call_function', 'call_method') and constant.shift is None and plain:
            if node.target in _SUMS and not any(numbers):
                parts = [self._before(arg, constant) for arg in inputs]
                return None if None in parts else set().union(*parts)
            if node.target in _PRODUCTS and len(inputs) == 1:
                return self._before(inputs[0], constant)
        if node.op == 'call_module' and self._scales(self._module(node), constant):
            return {f'{self.prefix}{node.target}'} if self.calls[node.target] == 1 else None
        return self._before(inputs[0], constant) if inputs and self._passes(node, constant) else None

    def _scales(self, layer: nn.Module, constant: Constant) -> bool:
        layer = layer.layer if isinstance(layer, ASR) else layer
        if type(layer) not in SCALABLE or layer in self.tied or channel_dim(layer) != 1:
            return False
        if isinstance(layer, WITH_ACTIVATION):
            act = getattr(layer, 'act', None)
            if not (type(act) is nn.Identity or (type(act) in _HOMOGENEOUS and constant.positive)):
                return False
        if constant.shift is not None and getattr(layer, 'bias', None) is None:
            return False
        try:
            scaled_names(layer)
        except TypeError:  # without affine parameters
            return False
        return constant.scale is None or out_channels(layer) == len(constant.scale)

    def _after(self, node: fx.Node, constant: Constant) -> set[str] | None:
        """Names of the convolutions that are all that reads a node; None if anything else does."""
        layers: set[str] = set()
        for user in node.users:
            module = self._module(user)
            if type(module) in _CONVS and module not in self.tied and self.calls[user.target] == 1:
                layers.add(f'{self.prefix}{user.target}')
            elif user.op != 'output' and user.args and user.args[0] is node and self._passes(user, constant):
                further = self._after(user, constant)
                if not further:
                    return None
                layers |= further
            else:
                return None
        return layers or None


@torch.no_grad()
def scale_inputs_(conv: nn.Conv2d, v: torch.Tensor) -> None:
    """Multiply what a convolution reads by v, (C,), through its weight (C', C / groups, h, w), in place."""
    columns = v.to(conv.weight).view(conv.groups, 1, -1)
    columns = columns.expand(-1, conv.out_channels // conv.groups, -1).reshape(conv.out_channels, -1)
    conv.weight.mul_(columns[:, :, None, None])


@torch.no_grad()
def fold_constants(model: nn.Module, constants: dict[str, Constant], places: dict[str, Place]) -> None:
    """Replace gates by constants that go where ``places`` says, in place."""
    for name, constant in constants.items():
        gate, place = model.get_submodule(name), places[name]
        for layer_name in place.layers:
            layer = model.get_submodule(layer_name)
            layer = layer.layer if isinstance(layer, ASR) else layer
            weight = getattr(layer, scaled_names(layer)[0])
            if not place.before:
                scale_inputs_(layer, constant.scale)
                continue
            if constant.scale is not None:
                scale_(layer, constant.scale.to(weight))
            if constant.shift is not None:
                layer.bias.add_(constant.shift.to(weight))
        like = next(gate.parameters())
        new = nn.Identity() if place.layers else constant.layer(like)
        places_of_gate = [(parent, name) for parent in model.modules() for name, child in parent._modules.items()
                          if child is gate]
        for parent, child_name in places_of_gate:
            setattr(parent, child_name, new.train(gate.training))
