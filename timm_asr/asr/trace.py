"""What a network does to an image, followed on tensors without content: a graph of layers and operations."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

#: ``Node.op`` of a layer that is followed as a whole.
LAYER = 'layer'


@dataclass(frozen=True)
class Node:
    """A tensor that depends on the image, and how it was made.

    Attributes:
        op: Name of the ATen operation without its overload, or :data:`LAYER`.
        inputs: Nodes it was made of, in order; tensors that do not depend on the image are left out.
        shape: Of the tensor.
        ancestors: The nodes it depends on and itself, one bit each.
        scope: Name of the innermost module that was running.
        layer: Name of the layer, for :data:`LAYER`.
        args: Positional arguments of the operation, None in the place of tensors.
    """

    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    ancestors: int
    scope: str = ''
    layer: str = ''
    args: tuple[Any, ...] = ()


class Graph:
    """The nodes of one forward pass, in the order in which they were computed.

    Args:
        layers: Modules that are followed as one node each, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        #: Layer that owns a parameter or buffer, by the identity of the tensor that stands for it.
        self.owners: dict[int, str] = {}
        self.nodes: list[Node] = []
        self.calls: dict[str, int] = dict.fromkeys(layers, 0)
        #: Layers whose parameters an operation outside of them uses.
        self.bypassed: set[str] = set()
        self._index: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is worth nothing once its tensor is gone

    def start(self, image: torch.Tensor) -> None:
        """Make the image the first node."""
        self._add(image, 'image', (), 0)

    def note(self, results: Any, op: str, inputs: Any, **where: Any) -> None:
        """Add a node for each tensor among ``results``, if one of the tensors among ``inputs`` has one."""
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
        if op != LAYER:
            self.bypassed.update(self.owners[id(t)] for t in tensors if id(t) in self.owners)
        known = tuple(self._index[id(t)] for t in tensors if id(t) in self._index)
        before = 0
        for i in known:
            before |= self.nodes[i].ancestors
        for result in tree_leaves(results) if known else ():
            if isinstance(result, torch.Tensor):
                self._add(result, op, known, before, **where)

    def _add(self, tensor: torch.Tensor, op: str, inputs: tuple[int, ...], before: int, **where: Any) -> None:
        index = len(self.nodes)
        self._index[id(tensor)] = index
        self._alive.append(tensor)
        self.nodes.append(Node(op, inputs, tuple(tensor.shape), before | 1 << index, **where))


class _Recorder(TorchDispatchMode):
    """Tells the graph of each operation, and of each layer as a whole."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.names = {module: name for name, module in model.named_modules()}
        self.scopes = ['']
        self.layer: nn.Module | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.layer is None:
            plain = tree_map(lambda x: None if isinstance(x, torch.Tensor) else x, args)
            name = func._schema.name.removeprefix('aten::')
            self.graph.note(result, name, (args, kwargs), scope=self.scopes[-1], args=plain)
        return result

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self.names[module]
        if self.layer is None and name in self.graph.layers:
            self.layer = module
        self.scopes.append(name)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self.scopes.pop()
        if self.layer is module:
            self.layer = None
            name = self.names[module]
            self.graph.calls[name] += 1
            self.graph.note(result, LAYER, (args, kwargs), scope=self.scopes[-1], layer=name)


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger that prints the traceback of an error besides raising it."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _short_recurrence(model: nn.Module) -> Iterator[None]:
    """Let recurrent layers give a tensor of the right shape at once: fake tensors would go through every step."""
    cells = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    for cell in cells:
        width = (cell.proj_size or cell.hidden_size) * (2 if cell.bidirectional else 1)
        # An instance attribute hides the method until it is deleted.
        cell.forward = lambda x, hx=None, width=width: (x.sum(-1, keepdim=True).expand(*x.shape[:-1], width), hx)
    try:
        yield
    finally:
        for cell in cells:
            del cell.forward


@torch.no_grad()
def follow(model: nn.Module, layers: Mapping[str, nn.Module], size: tuple[int, ...]) -> Graph:
    """Send an image without content through a model, in eval mode, and record what happens to it.

    Nothing is computed, no memory is taken for activations, and the model is left as it was.

    Args:
        model: The model, on any device, 'meta' too.
        layers: Modules inside that are followed as one node each, by name.
        size: Of the image, (channels, height, width).

    Returns:
        The graph.
    """
    try:
        return _follow(model, layers, size, fake=False)
    except (RuntimeError, NotImplementedError):
        # A tensor that is neither parameter nor buffer stays where it is: fake tensors, several times slower, can tell.
        return _follow(model, layers, size, fake=True)


def _follow(model: nn.Module, layers: Mapping[str, nn.Module], size: tuple[int, ...], fake: bool) -> Graph:
    graph = Graph(layers)
    state: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    like = next(t for t in state.values() if t.is_floating_point())
    device = like.device if fake else torch.device('meta')
    if not fake:
        light = {id(t): t.to('meta') for t in state.values()}
        state = {name: light[id(t)] for name, t in state.items()}
    for name, module in layers.items():
        for inner, _ in (*module.named_parameters(), *module.named_buffers()):
            graph.owners[id(state[f'{name}.{inner}'])] = name
    recorder = _Recorder(graph, model)
    with ExitStack() as stack:
        stack.enter_context(_eval(model))
        stack.enter_context(_short_recurrence(model))
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(recorder.enter, with_kwargs=True, prepend=True).remove)
                stack.callback(module.register_forward_hook(recorder.leave, with_kwargs=True).remove)
        if fake:
            stack.enter_context(_quiet('torch._subclasses.fake_tensor'))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        image = torch.zeros(1, *size, device=device, dtype=like.dtype)
        graph.start(image)
        stack.enter_context(recorder)
        if fake:
            model(image)
        else:
            functional_call(model, state, (image,))
    return graph
