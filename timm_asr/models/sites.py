"""Where ASR goes in a network, by the classes of its blocks."""

import fnmatch

import timm.models.resnet as resnet
import timm.models.vision_transformer as vit
from timm.models.byobnet import RepVggBlock
from torch import nn

from ..layers.asr import ASR
from ..layers.scaled import nearest
from .shared_stage import BranchBasicBlock, BranchBottleneck
from .wide import BranchWideBlock, WideBlock

#: Block class -> names inside the block: the last norm of a residual branch (where it ends in none, the last
#: convolution); the outputs of attention and MLP; '' is the block itself, a sum of branches (layers/branches.py).
SITES: dict[type[nn.Module], tuple[str, ...]] = {
    resnet.BasicBlock: ('bn2',),
    resnet.Bottleneck: ('bn3',),
    BranchBasicBlock: ('bn2',),
    BranchBottleneck: ('bn3',),
    WideBlock: ('conv2',),
    BranchWideBlock: ('bn3',),
    vit.Block: ('attn.proj', 'mlp.fc2'),
    RepVggBlock: ('',),
}


def known_sites(model: nn.Module) -> list[str]:
    """Names of the layers in a model that ASR scales where nobody names others.

    Raises:
        ValueError: The model has no block of a known class.
    """
    sites = [
        f'{name}.{inner}'.strip('.')
        for name, module in model.named_modules()
        for kind, inside in SITES.items() if type(module) is kind
        for inner in inside
    ]
    if not sites:
        blocks = ', '.join(f'{kind.__module__.rpartition(".")[2]}.{kind.__name__}' for kind in SITES)
        raise ValueError(
            f'No place for ASR is known in a {type(model).__name__}: none of its modules is one of {blocks}. '
            "Name the layers yourself, e.g. sites=['layer1.*.bn2'] (names as in model.named_modules()).")
    return sites


def match_sites(model: nn.Module, patterns: list[str]) -> list[str]:
    """Names of a model's modules that match names or shell patterns given by the caller, in the model's order.

    Raises:
        ValueError: A pattern matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    # What an ASR holds is not a site: 'layer1.*.bn3' must not reach into 'layer1.0.bn3.vectors...'.
    inside = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, ASR))
    names = [name for name in names if not name.startswith(inside)] if inside else names
    depth = {pattern: pattern.count('.') for pattern in patterns}
    matched: set[str] = set()
    for pattern in patterns:
        found = [n for n in names if n.count('.') == depth[pattern] and fnmatch.fnmatchcase(n, pattern)]
        if not found:
            raise ValueError(
                f"No module of this {type(model).__name__} is called '{pattern}'{nearest(pattern, names)}; "
                'sites are names or patterns as in model.named_modules().')
        matched.update(found)
    return [name for name in names if name in matched]
