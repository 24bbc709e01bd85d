"""Where ASR goes in a network: by the classes of its blocks, and where its residual branches end."""

import fnmatch
from collections import Counter
from collections.abc import Mapping

from timm.layers import to_2tuple
from timm.models import get_model_args
from torch import nn

from ..errors import did_you_mean
from .blocks import BLOCKS, facts_of
from .residual_ends import BranchEnds, conv_norms
from .scaled import SCALABLE, has_hooks, scaled_names
from .trace import Graph, follow
from .wrapper import ASR


def known_sites(model: nn.Module) -> list[str]:
    """Names of the layers in a model that ASR scales where nobody names others.

    In blocks of registered classes (asr/blocks.py) these are the layers named there. In others it is the last affine
    layer on the channels of each residual branch (layer scale where there is no other), found by following an image
    without content through the network; blocks of the same class are treated alike, those without an addition too. In a
    network without residual branches it is each norm after a convolution, or each convolution. Layers that are used
    twice, are shared, have hooks, or whose scale would be undone are left out.

    Raises:
        ValueError: There is none.
    """
    sites = dict.fromkeys(class_sites(model))
    size = _input_size(model)
    if size is None:
        reason = 'it has no pretrained_cfg that says its input size, so its residual branches cannot be followed'
    else:
        layers = _layers(model)
        try:
            graph = follow(model, layers, size)
        except Exception as error:  # whatever a foreign forward pass may raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            reason = f'an image of the size {size} could not be followed through it ({line})'
        else:
            sites |= dict.fromkeys(found_sites(model, graph, tuple(sites)))
            reason = 'its residual branches end in no layer that can be scaled, nor has it a norm after a convolution'
    if not sites:
        raise ValueError(
            f'No place for ASR is known in a {type(model).__name__}: {reason}, and none of its blocks is of a known '
            f'class ({", ".join(kind.__name__ for kind, block in BLOCKS.items() if block.sites)}). '
            "Name the layers yourself, e.g. sites=['layer1.*.bn2'] (names as in model.named_modules()).")
    order = {name: i for i, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return sorted(sites, key=order.__getitem__)


def class_sites(model: nn.Module) -> list[str]:
    """The sites of the blocks whose classes are known, and whose layers are such as can be scaled."""
    sites: list[str] = []
    wrapped = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, ASR))
    for name, module in model.named_modules():
        inside = facts_of(module.layer if isinstance(module, ASR) else module).sites
        try:
            layers = [module.get_submodule(inner) for inner in inside]
        except AttributeError:
            continue
        if not name.startswith(wrapped) and all(isinstance(m, ASR) or _is_scalable(m) for m in layers):
            sites += [f'{name}.{inner}'.strip('.') for inner in inside]
    return sites


def _is_scalable(layer: nn.Module) -> bool:
    try:
        return bool(scaled_names(layer)) and not has_hooks(layer)  # which its scaled form would not call
    except TypeError:
        return False


def _input_size(model: nn.Module) -> tuple[int, ...] | None:
    """(channels, height, width) of the images that a timm model was built for; None if it does not say."""
    size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size')
    if size is None:
        return None
    args = get_model_args(model) or {}
    grid = args.get('img_size') or getattr(getattr(model, 'patch_embed', None), 'img_size', None) or size[1:]
    return (args.get('in_chans') or getattr(model, 'in_chans', None) or size[0], *to_2tuple(grid))


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are followed as a whole: what can be scaled, and what has ASR already."""
    layers = {
        name: module for name, module in model.named_modules()
        if type(module) in SCALABLE or facts_of(module).ends or isinstance(module, ASR)}
    inside = tuple(f'{name}.' for name, module in layers.items() if type(module) not in SCALABLE)
    return {name: module for name, module in layers.items() if not name.startswith(inside)}


def found_sites(model: nn.Module, graph: Graph, known: tuple[str, ...] = ()) -> list[str]:
    """The sites that a graph shows; what else is in blocks with ``known`` sites is left out."""
    usable = _usable(model, graph)
    ends = BranchEnds(graph, usable)
    blocks = tuple(
        f'{name}.' for name, module in model.named_modules() if name and facts_of(module).sites
        and any(site == name or site.startswith(f'{name}.') for site in known))
    found = {layer: scope for layer, scope in ends.found.items() if not f'{layer}.'.startswith(blocks)}
    if not ends.additions and not known:
        return conv_norms(graph, usable)
    return [*found, *_alike(model, found, usable, known)]


def _usable(model: nn.Module, graph: Graph) -> set[str]:
    """The layers that were called once, by themselves, with parameters of their own that a scale can act on."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {
        name for name, layer in graph.layers.items()
        if graph.calls[name] == 1 and name not in graph.bypassed and (isinstance(layer, ASR) or _is_scalable(layer))
        and all(owners[id(p)] == 1 for p in layer.parameters())}


def _alike(model: nn.Module, found: Mapping[str, str], usable: set[str], known: tuple[str, ...]) -> list[str]:
    """Sites in blocks without an addition, of classes that have one elsewhere: MobileNet's blocks with a stride."""
    patterns: dict[type[nn.Module], Counter[tuple[str, ...]]] = {}
    inner: dict[str, list[str]] = {}
    for layer, scope in found.items():
        if scope and layer.startswith(f'{scope}.'):
            inner.setdefault(scope, []).append(layer.removeprefix(f'{scope}.'))
    for scope, names in inner.items():
        patterns.setdefault(type(model.get_submodule(scope)), Counter())[tuple(names)] += 1
    sites: list[str] = []
    for name, module in model.named_modules():
        if type(module) in patterns and not any(site.startswith(f'{name}.') for site in (*found, *known)):
            choices = ([f'{name}.{end}' for end in ends] for ends, _ in patterns[type(module)].most_common())
            sites += next((choice for choice in choices if usable.issuperset(choice)), [])
    return sites


def match_sites(model: nn.Module, patterns: list[str]) -> list[str]:
    """Names of a model's modules that match names or shell patterns given by the caller, in the model's order.

    Raises:
        ValueError: A pattern matches nothing.
    """
    # What an ASR holds is not a site: 'layer1.*.bn3' must not reach into 'layer1.0.bn3.vectors...'.
    inside = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, ASR))
    names = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
    matched: set[str] = set()
    for pattern in patterns:
        found = [n for n in names if n.count('.') == pattern.count('.') and fnmatch.fnmatchcase(n, pattern)]
        if not found:
            raise ValueError(
                f"No module of this {type(model).__name__} is called '{pattern}'{did_you_mean(pattern, names)}; "
                'sites are names or patterns as in model.named_modules().')
        matched.update(found)
    return [name for name in names if name in matched]
