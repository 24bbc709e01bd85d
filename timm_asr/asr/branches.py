"""Blocks whose output is a sum of branches, scaled as one layer.

The sum of branches that each end in an affine layer is affine in the parameters of all those ends, channel by channel:
sum_i layer_i(x; w_i, b_i) * v = sum_i layer_i(x; v * w_i, v * b_i). So one v for the block scales every end, whatever
the block does with the sum afterwards comes after the scale, and merging the branches commutes with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

#: Exact class of a block -> a function that gives the names of the layers its branches end in.
BRANCH_BLOCKS: dict[type[nn.Module], Callable[[Any], Sequence[str]]] = {}


def register_branches(kind: type[nn.Module], ends: Callable[[Any], Sequence[str]]) -> None:
    """Let ASR scale the sum of the branches of a class of blocks.

    Args:
        kind: The class.
        ends: From a block to the names of the layers that its branches end in, as in ``block.named_modules()``. All
            that is added up must come out of them. Once the branches are merged: the name of the merged layer.

    Raises:
        RuntimeError: The class is registered already.
    """
    if kind in BRANCH_BLOCKS:
        raise RuntimeError(f'The branches of {kind.__name__} are registered already.')
    BRANCH_BLOCKS[kind] = ends


def existing(block: nn.Module, *names: str) -> list[str]:
    """Of the given names those that a block has, ``None`` not counted; a ``ModuleList`` stands for its members.

    A name may go on inside a branch: 'conv_kxk.bn' is 'conv_kxk.0.bn' and so on where ``conv_kxk`` is a list.
    """
    found = []
    for name in names:
        head, _, rest = name.partition('.')
        child = getattr(block, head, None)
        if child is None:
            continue
        heads = [f'{head}.{i}' for i in range(len(child))] if isinstance(child, nn.ModuleList) else [head]
        found += [f'{h}.{rest}' if rest else h for h in heads]
    return found
