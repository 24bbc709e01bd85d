"""What is known of a class of blocks: one registration a class, read by everything that treats blocks.

A block may sum parallel branches, as RepVGG's does. If each branch ends in an affine layer, then the sum is affine in
the parameters of all those ends, channel by channel: sum_i layer_i(x; w_i, b_i) * v = sum_i layer_i(x; v w_i, v b_i).
So one vector v scales the sum by scaling every end. What the block does with the sum afterwards comes after the scale,
and merging the branches commutes with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Block:
    """What is known of a class of blocks.

    Attributes:
        sites: Names of the layers inside that ASR scales: the last norm of the residual branch (where it ends in none,
            the last convolution), the outputs of attention and MLP. '' is the block itself, a sum of parallel branches.
        ends: For a block that sums parallel branches: a function from the block to the names of the layers that its
            branches end in. All that is summed must come out of them. Once merged: the name of the merged layer.
        scripted: What TorchScript needs around the block, where it can run one with ASR: the class
            :class:`timm_asr.asr.wrapper.ASR` if multiplying the output will do, otherwise a subclass.
        layers: For a residual block with a place ``se`` for a gate: names of its layers in order. The last three are
            the last convolution, its norm and the activation after the addition.
        branch: The same block cut in two, for the unit that a stage shares: ``forward`` gives the residual branch and
            the shortcut, ``merge`` adds them.
    """

    sites: tuple[str, ...] = ()
    ends: Callable[[Any], Sequence[str]] | None = None
    scripted: type[nn.Module] | None = None
    layers: tuple[str, ...] = ()
    branch: type[nn.Module] | None = None


#: By exact class, since a subclass may compute anything.
BLOCKS: dict[type[nn.Module], Block] = {}


def register_block(kind: type[nn.Module], **facts: Any) -> None:
    """Make a class known by fields of :class:`Block`, once: ``register_block(ACBlock, ends=lambda block: ['bn'])``."""
    if kind in BLOCKS:
        raise RuntimeError(f'The block {kind.__name__} is registered already.')
    BLOCKS[kind] = Block(**facts)


def facts_of(module: nn.Module) -> Block:
    """What is known of a module's class; an empty :class:`Block` where it is not registered."""
    return BLOCKS.get(type(module), Block())


def existing(block: nn.Module, *names: str) -> list[str]:
    """Of the given names those that a block has, ``None`` not counted: 'conv.bn' is 'conv.0.bn', ... of a list."""
    found = []
    for name in names:
        head, _, rest = name.partition('.')
        child = getattr(block, head, None)
        heads = [f'{head}.{i}' for i in range(len(child))] if isinstance(child, nn.ModuleList) else [head]
        found += [f'{h}.{rest}'.strip('.') for h in heads if child is not None]
    return found
