"""What a network does to an image, followed on tensors without content: a graph of layers and operations."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .together import apart

#: ``Node.op`` of a layer that is followed as a whole.
LAYER = 'layer'


@dataclass(frozen=True)
class Node:
    """A tensor that depends on the image, and how it was made."""

    op: str  # name of the ATen operation without its overload, or LAYER
    inputs: tuple[int, ...]  # nodes it was made of, in order, without tensors that do not depend on the image
    shape: tuple[int, ...]
    ancestors: int  # the nodes it depends on and itself, one bit each
    scope: str = ''  # name of the innermost module that was running
    layer: str = ''  # name of the layer, for LAYER
    args: tuple[Any, ...] = ()  # positional arguments of the operation, None in the place of tensors


class Graph(TorchDispatchMode):
    """The nodes of one forward pass in order; ``layers`` of the model are followed as one node each."""

    def __init__(self, layers: Mapping[str, nn.Module], model: nn.Module) -> None:
        super().__init__()
        self.layers = dict(layers)
        self.nodes: list[Node] = []
        self.calls: dict[str, int] = dict.fromkeys(layers, 0)
        #: Layers whose parameters an operation outside of them uses.
        self.bypassed: set[str] = set()
        self._owners = {id(t): name for name in layers for inside in [model.get_submodule(name)]
                        for t in (*inside.parameters(), *inside.buffers())}
        self._names = {module: name for name, module in model.named_modules()}
        self._scopes = ['']
        self._layer: nn.Module | None = None
        self._index: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is worth nothing once its tensor is gone

    def note(self, results: Any, op: str, inputs: Any, **where: Any) -> None:
        """Add a node for each tensor among ``results``, if one of the tensors among ``inputs`` has one."""
        tensors = [id(t) for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
        if op != LAYER:
            self.bypassed.update(self._owners[t] for t in tensors if t in self._owners)
        known = tuple(self._index[t] for t in tensors if t in self._index)
        before = 0
        for i in known:
            before |= self.nodes[i].ancestors
        for result in tree_leaves(results) if known or op == 'image' else ():
            if isinstance(result, torch.Tensor):
                index = self._index[id(result)] = len(self.nodes)
                self._alive.append(result)
                self.nodes.append(Node(op, known, tuple(result.shape), before | 1 << index, self._scopes[-1], **where))

    def members(self, bits: int) -> Iterator[tuple[int, Node]]:
        """The nodes of a set, in order."""
        while bits:
            index = (bits & -bits).bit_length() - 1
            yield index, self.nodes[index]
            bits &= bits - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._layer is None:
            plain = tree_map(lambda x: None if isinstance(x, torch.Tensor) else x, args)
            self.note(result, func._schema.name.removeprefix('aten::'), (args, kwargs), args=plain)
        return result

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of every module."""
        name = self._names.get(module, self._scopes[-1])  # ASR runs its layer as a copy, which belongs to the original
        if self._layer is None and name in self.layers:
            self._layer = module
        self._scopes.append(name)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """Forward hook of every module."""
        self._scopes.pop()
        if self._layer is module:
            self._layer = None
            name = self._names[module]
            self.calls[name] += 1
            self.note(result, LAYER, (args, kwargs), layer=name)


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model's modules, in eval mode, whose tensors have no content; none of the model's own is touched.

    What is the same tensor in the model is the same one in the copy.
    """
    tensors = [t for m in model.modules() for t in tree_leaves(vars(m)) if isinstance(t, torch.Tensor)]
    skeleton = copy.deepcopy(model, {
        id(t): nn.Parameter(t.detach().to('meta'), requires_grad=False) if isinstance(t, nn.Parameter)
        else t.detach().to('meta') for t in tensors}).eval()
    apart(skeleton)
    for cell in skeleton.modules():
        if isinstance(cell, nn.RNNBase):  # a tensor of the right shape at once, in place of step after step
            width = (cell.proj_size or cell.hidden_size) * (2 if cell.bidirectional else 1)
            cell.forward = lambda x, hx=None, width=width: (  # type: ignore[method-assign]
                x.sum(-1, keepdim=True).expand(*x.shape[:-1], width), hx)
    return skeleton


@torch.no_grad()
def follow(model: nn.Module, layers: Mapping[str, nn.Module], size: tuple[int, ...]) -> Graph:
    """Send an image without content through a copy of a model, in eval mode, and record what happens to it.

    Nothing is computed, no memory is taken for activations, and the model itself does not take part. ``layers`` are
    followed as one node each; ``size`` is (channels, height, width).
    """
    skeleton = _skeleton(model)
    graph = Graph(layers, skeleton)
    for module in skeleton.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_pre_hook(graph.enter, with_kwargs=True, prepend=True)
            module.register_forward_hook(graph.leave, with_kwargs=True)
    like = next(t for t in (*skeleton.parameters(), *skeleton.buffers()) if t.is_floating_point())
    with torch.device('meta'):
        image = torch.zeros(1, *size, dtype=like.dtype)
        graph.note(image, 'image', ())
        with graph:
            skeleton(image)
    return graph
