"""Put ASR on a network that is already built."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..gates.gate import ChannelGate
from .fold import has_asr, places, refuse_scripted, refuse_shared, replace
from .scaled import has_hooks
from .sites import known_sites, match_sites
from .together import together
from .ungated import vector_maker
from .wrapper import ASR, wrap

#: Keyword of a model -> argument of :func:`attach_asr`. All of them describe the vectors of a site.
VECTOR_KEYWORDS = {f'asr_{name}': name for name in ('depth', 'init', 'learnable', 'constant', 'gain')}
#: All keywords that say what ASR a model has.
ASR_KEYWORDS = frozenset(('asr', 'asr_sites', 'rd_ratio', *VECTOR_KEYWORDS))


def take_vector_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Take the keywords of ASR's vectors out of a model's keywords, as arguments of ``attach_asr``; None is none."""
    found = {name: keywords.pop(key) for key, name in VECTOR_KEYWORDS.items() if key in keywords}
    return {name: value for name, value in found.items() if value is not None}


def attach_asr(
        model: nn.Module, gate: str | Callable[..., ChannelGate] = 'se', sites: Sequence[str] | None = None,
        depth: int = 1, init: float | str | None = None, learnable: bool = True, rd_ratio: float | None = None,
        preserve: bool | None = None, constant: bool = False, gain: float = 1.0) -> nn.Module:
    """Scale layers of a model by attention that is fed by learned vectors (ASR), in place.

    Args:
        model: A model of timm, a module with blocks of known classes, or any module at all with ``sites``.
        gate: Name of a foldable gate; ``free``, ``scale`` or ``scalar`` for a vector without a gate
            (:mod:`timm_asr.asr.ungated`); or a constructor ``f(channels, device=None, dtype=None)`` of a gate.
        sites: Names or patterns of layers to scale, as in ``model.named_modules()``, e.g. ``['layer4.*.bn3']``;
            by default those that are found, see :func:`timm_asr.asr.sites.known_sites`.
        depth: Number of vectors at each site, 1 to 4 (the paper's delta).
        init: Before a gate the initial psi (default 0.1), without a gate the initial v; ``'N_0.1'`` draws psi from
            N(0, 0.1^2).
        learnable: Whether psi is trained.
        rd_ratio: Hidden width of the gate over its channels, for gates with a hidden layer.
        preserve: Divide each layer's parameters by the initial v, so that the model computes exactly what it did
            before: the way to fine-tune pretrained weights. By default where the model does not look fresh: running
            statistics have moved, or, in a layer that has none, the weights of a norm or layer scale differ.
        constant: Train neither psi nor the gate: v stays what it starts as.
        gain: Factor of each vector's v, which folds like the rest: with 2, v = 2 sigmoid(F(psi)) starts near one.

    Returns:
        The model.

    Raises:
        ValueError: Unknown gate, unknown site, wrong depth or init, a site that has ASR already, or a gate that does
            not fit the layer's channels. The model is unchanged.
        TypeError: A site's layer cannot be scaled through its parameters. The model is unchanged.
    """
    refuse_scripted(model, 'attach ASR')
    if isinstance(gate, str):
        gate = vector_maker(gate, rd_ratio)
    elif rd_ratio is not None:
        raise TypeError('rd_ratio goes with a gate given by name; a constructor brings its own.')
    names = known_sites(model) if sites is None else match_sites(
        model, [sites] if isinstance(sites, str) else list(sites))
    if not names:
        raise ValueError("sites is empty; name layers such as 'layer4.*.bn3', or leave it out.")
    if preserve is None:
        preserve = not _is_fresh(model)
    made: dict[nn.Module, ASR] = {}  # by layer, since a shared layer is one site under several names
    found = places(model)
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, ASR):
            raise ValueError(f"'{name}' has ASR already; ask for all vectors at once, such as depth={depth + 1}.")
        if layer in made:
            continue
        try:
            refuse_shared(found, layer)
            if has_hooks(layer):
                raise ValueError('it has hooks (pruning and weight_norm work by them), which would undo the scale.')
            outer = next((n for n in names if name.startswith(f'{n}.')), None)
            if outer is not None:
                raise ValueError(f"it is inside '{outer}', another site.")
            made[layer] = wrap(layer, gate, depth, init=init, learnable=learnable, constant=constant, gain=gain)
            if preserve:
                made[layer].preserve_(dry=True)
        except (TypeError, ValueError) as error:
            raise type(error)(f"ASR does not fit the site '{name}': {error}") from None

    if model in made:
        raise ValueError('The model itself is the site, and nothing around it could hold the wrapper; put it into an '
                         'nn.Sequential first.')
    if not has_asr(model):
        vars(model).pop('asr_options', None)  # of ASR that was folded
    for layer, asr in made.items():
        asr.train(layer.training)
        if preserve:
            asr.preserve_()
    replace(model, made)  # a layer that several parents share, in all of them: they share the folded parameters too
    together(model)
    return model


@torch.no_grad()
def _is_fresh(model: nn.Module) -> bool:
    """Whether a model looks untrained: every module's running statistics are as they start; or, where it has none, its
    weights are equal if it is a norm or a layer scale. (RepVGG's norms start with weights that are drawn.)
    """
    told: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if '.vectors.' not in f'.{name}.':
            told += [t for key, t in module.named_buffers(recurse=False) if key in ('running_mean', 'running_var')] or [
                # Those of norms, of layer scales and of NFNets' convolutions; no weights of a layer with one output.
                t for key, t in module.named_parameters(recurse=False)
                if (key == 'weight' and t.ndim == 1) or key in ('gamma', 'gain')]
    return not any((t != t.flatten()[:1]).any() for t in told if not t.is_meta)
