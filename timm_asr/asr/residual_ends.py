"""Where the residual branches of a network end, read off the graph of a forward pass (asr/trace.py)."""

import functools
import math

from torch import nn

from .blocks import facts_of
from .scaled import LAYER_SCALES, channel_dim
from .trace import LAYER, Graph, Node
from .wrapper import ASR

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ADD = {'add', 'add_', 'sub', 'sub_'}
# What is left to see of layers that cannot be scaled, such as weight-standardised convolutions.
_WEIGHING = {'convolution', 'addmm', 'mm'}
_RESHAPE = {'view', '_unsafe_view', 'reshape', 'squeeze', 'squeeze_', 'unsqueeze', 'unsqueeze_', '_reshape_alias'}
# Channels pass through these one by one, in the dimension in which they come.
_PLACES = {
    'alias', 'as_strided_', 'clone', 'contiguous', 'detach', 'lift_fresh', '_to_copy', 'expand', 'slice', 'split',
    'split_with_sizes', 'roll', 'flip', 'constant_pad_nd', 'reflection_pad2d', 'replication_pad2d', 'avg_pool1d',
    'avg_pool2d', '_adaptive_avg_pool2d', 'max_pool2d_with_indices', 'upsample_nearest2d', 'upsample_bilinear2d',
    'upsample_bicubic2d'}
_SCALES = {'mul', 'mul_', 'div', 'div_', 'neg'}
_ACTIVATIONS = {
    'relu', 'relu_', 'gelu', 'silu', 'silu_', 'hardswish', 'hardswish_', 'hardtanh', 'hardtanh_', 'leaky_relu',
    'leaky_relu_', 'elu', 'elu_', 'mish', 'tanh', 'clamp', 'clamp_', 'clamp_min', 'clamp_min_', '_prelu_kernel', 'pow'}
# A feature map times one of these of itself is normalised: what came before it leaves no trace.
_NORMALISING = {'rsqrt', 'sqrt', 'std', 'var', 'var_mean', 'linalg_vector_norm', 'reciprocal'}
_MOVES = {*_PLACES, *_RESHAPE, 'permute', 'transpose'}


def additions(graph: Graph) -> dict[int, tuple[int, int]]:
    """The residual additions of a graph, where a branch joins what went around it: node -> branch, its nodes as bits.

    What goes around is the input of the branch itself, or a projection of it: at most one convolution in a row, no
    activation, while the branch has more. Sums of equals, such as RepVGG's branches, are not residual.
    """
    found: dict[int, tuple[int, int]] = {}
    projected: set[int] = set()
    for i, node in enumerate(graph.nodes):
        if node.op not in _ADD or len(node.inputs) != 2:
            continue
        a, b = node.inputs
        left, right = graph.nodes[a].ancestors, graph.nodes[b].ancestors
        if right >> a & 1:
            found[i] = b, right & ~left
        elif left >> b & 1:
            found[i] = a, left & ~right
        else:
            plain = [_is_projection(graph, only & ~(left & right)) for only in (left, right)]
            if plain[0] != plain[1]:
                found[i] = (b, right & ~left) if plain[0] else (a, left & ~right)
                projected.add(i)
    for i in projected:  # Res2Net's and the like: within a branch, the parts of a split are added to each other
        if any(graph.nodes[j].scope == graph.nodes[i].scope and inside >> i & 1
               for j, (_, inside) in found.items() if j != i):
            del found[i]
    return found


def _is_projection(graph: Graph, bits: int) -> bool:
    depth: dict[int, int] = {}
    for i, node in graph.members(bits):
        if node.op == LAYER:
            layer = graph.layers[node.layer]
            weighted = isinstance(layer, _WEIGHTED) or bool(facts_of(layer).ends)
        elif node.op in _WEIGHING | _MOVES | _SCALES | _ADD:
            weighted = node.op in _WEIGHING
        else:
            return False
        depth[i] = max((depth.get(j, 0) for j in node.inputs), default=0) + weighted
    return max(depth.values(), default=0) <= 1


class BranchEnds:
    """The last usable layers on the channels of each residual branch: in ``found``, each with the adding module."""

    def __init__(self, graph: Graph, usable: set[str]) -> None:
        self.graph, self.nodes, self.usable = graph, graph.nodes, usable
        self.additions = additions(graph)
        self.found: dict[str, str] = {}
        for i, (branch, inside) in self.additions.items():
            node = self.nodes[i]
            # Channels are the last dimension of a sequence; images keep them first or last.
            axes = (1, 3) if len(node.shape) == 4 else (len(node.shape) - 1,)
            self._ends = functools.cache(self._search)
            for layer in next(filter(None, (self._ends(branch, axis, inside) for axis in axes)), ()):
                self.found.setdefault(layer, node.scope)

    def _search(self, i: int, axis: int, inside: int) -> set[str]:
        """The last layers inside before node i on the channels, which lie in its dimension ``axis``."""
        if not inside >> i & 1:
            return set()
        node = self.nodes[i]
        if node.op == LAYER:
            return self._layer(node, axis, inside)
        if node.op in _ADD and len(node.inputs) == 2:
            if i in self.additions:
                branch = self.additions[i][0]
                around = node.inputs[node.inputs[0] == branch]
                return self._ends(branch, axis, inside) or self._ends(around, axis, inside)
            return self._all(node.inputs, axis, inside)
        if node.op in _SCALES and len(node.inputs) == 2:
            gated = self._gated(*node.inputs) if node.op.startswith('mul') else None
            return set() if gated is None else self._ends(gated, axis, inside)
        if node.op == 'cat':
            return self._all(node.inputs, axis, inside)
        if node.op == 'stack':
            at = (node.args[1] if len(node.args) > 1 else 0) % len(node.shape)
            return set() if axis == at else self._all(node.inputs, axis - (axis > at), inside)
        before = self._axis_before(node, axis) if len(node.inputs) == 1 else None
        return set() if before is None else self._ends(node.inputs[0], before, inside)

    def _all(self, inputs: tuple[int, ...], axis: int, inside: int) -> set[str]:
        return set().union(*(self._ends(j, axis, inside) for j in inputs))

    def _layer(self, node: Node, axis: int, inside: int) -> set[str]:
        layer = self.graph.layers[node.layer]
        dim = layer.channel_dim if isinstance(layer, ASR) else channel_dim(layer)
        if dim % len(node.shape) != axis:
            # A linear layer on the positions: each channel passes alone.
            return self._ends(node.inputs[0], axis, inside) if isinstance(layer, nn.Linear) else set()
        if isinstance(layer, LAYER_SCALES):  # the layer that it scales comes first
            return self._ends(node.inputs[0], axis, inside) or {node.layer} & self.usable
        return {node.layer} & self.usable

    def _gated(self, a: int, b: int) -> int | None:
        """Which factor is the feature map, the other one being weights; None if there is no telling."""
        sizes = [math.prod(self.nodes[j].shape) for j in (a, b)]
        if self.nodes[a].ancestors >> b & 1 or (not self.nodes[b].ancestors >> a & 1 and sizes[1] > sizes[0]):
            a, b = b, a
        elif not self.nodes[b].ancestors >> a & 1 and sizes[0] == sizes[1]:
            return None
        weights = self.nodes[b].ancestors & ~self.nodes[a].ancestors
        return None if any(node.op in _NORMALISING for _, node in self.graph.members(weights)) else a

    def _axis_before(self, node: Node, axis: int) -> int | None:
        """Dimension of the channels in the input of an operation; None where they are not kept apart."""
        shape, rank = self.nodes[node.inputs[0]].shape, len(node.shape)
        if node.op == 'permute':
            return node.args[1][axis] % rank
        if node.op in ('transpose', 't'):
            d0, d1 = (node.args[1] % rank, node.args[2] % rank) if node.op == 'transpose' else (0, 1)
            return {d0: d1, d1: d0}.get(axis, axis)
        if node.op in _RESHAPE:
            lead, size = math.prod(node.shape[:axis]), node.shape[axis]
            return next((d for d, s in enumerate(shape) if s == size and math.prod(shape[:d]) == lead), None)
        if node.op in ('select', 'unbind', 'sum') and len(shape) == rank + 1:
            at = node.args[1] if len(node.args) > 1 else 0
            return axis + (axis >= (at[0] if isinstance(at, list) else at) % len(shape))
        if node.op in _WEIGHING:
            return axis if node.op == 'convolution' and axis == 1 else None
        if node.op in _PLACES or node.op in _ACTIVATIONS or node.op in _SCALES or node.op in _ADD:
            more = rank - len(shape)  # by broadcasting
            return axis - more if 0 <= more <= axis else None
        return None


def conv_norms(graph: Graph, usable: set[str]) -> list[str]:
    """The norms that follow a convolution in a network without residual branches; where it has none, the convolutions.

    What has no positions left, the classifier and what belongs to it, does not count.
    """
    nodes = graph.nodes
    followers: dict[int, list[int]] = {i: [] for i in range(len(nodes))}
    for i, node in enumerate(nodes):
        for j in node.inputs:
            followers[j].append(i)

    def is_norm(node: Node) -> bool:
        if node.op != LAYER:
            return 'norm' in node.op or node.op in _NORMALISING
        return not isinstance(graph.layers[node.layer], (*_WEIGHTED, *LAYER_SCALES, ASR))

    def is_conv(node: Node) -> bool:
        return node.op == 'convolution' or isinstance(graph.layers.get(node.layer), _WEIGHTED)

    def is_normalised(i: int) -> bool:
        return any(is_norm(nodes[j]) or (nodes[j].op in _MOVES and is_normalised(j)) for j in followers[i])

    ours = [(i, node) for i, node in enumerate(nodes)
            if node.layer in usable and len(node.shape) == 4 and min(node.shape[1:]) > 1]
    return ([node.layer for _, node in ours if is_norm(node) and is_conv(nodes[node.inputs[0]])]
            or [node.layer for i, node in ours if is_conv(node) and not is_normalised(i)])
