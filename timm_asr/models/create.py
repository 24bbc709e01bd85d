"""Any timm model with ASR by one call."""

from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from ..asr.attach import attach_asr
from ..asr.vector import has_asr
from ..gates.table import asr_gate
from .last_norm import init_last_norms
from .zoo import is_ours, plain_architecture

#: Keyword of :func:`create_model` -> argument of :func:`attach_asr`.
ASR_KEYWORDS = {
    'asr': 'gate', 'asr_depth': 'depth', 'asr_init': 'init', 'asr_learnable': 'learnable', 'rd_ratio': 'rd_ratio',
    'asr_sites': 'sites'}


def create_model(
        model_name: str,
        pretrained: bool = False,
        asr: str | None = None,
        asr_depth: int | None = None,
        asr_init: float | str | None = None,
        asr_learnable: bool | None = None,
        rd_ratio: float | None = None,
        asr_sites: Sequence[str] | None = None,
        preserve: bool | None = None,
        last_norm_init: float | None = None,
        **kwargs: Any,
) -> nn.Module:
    """``timm.create_model``, with ASR where a gate is named.

    The model is timm's own class with ASR at its sites, and carries what it was made with as ``asr_options``, so that
    :func:`timm_asr.save_fused`, ``deepcopy`` and pickles need not be told.

    Args:
        model_name: Any name that timm takes: of the registry, with a pretrained tag, ``hf-hub:...``,
            ``local-dir:...``.
        pretrained: Load the weights that belong to the name.
        asr: Name of a foldable gate; None for no ASR, which makes this ``timm.create_model``.
        asr_depth: Vectors at each site, 1 to 4 (default 1).
        asr_init: Initial psi: a number (default 0.1), or ``'N_0.1'`` for N(0, 0.1^2).
        asr_learnable: Whether psi is trained (default True).
        rd_ratio: Hidden width of the gate over its channels, for gates with a hidden layer. Without ``asr`` it goes to
            the model, as everything else does.
        asr_sites: Names or patterns of the layers to scale; by default those that are found (:func:`attach_asr`).
        preserve: Divide each scaled layer by the initial v, so that the model computes what its weights did before.
            By default where weights are loaded, since v, about 0.5, would change what they do.
        last_norm_init: Initial weight of the last norm of each residual branch, with or without ASR: the layers are
            those that ASR scales. ``create_model('resnet50', last_norm_init=0.5)`` is the control for ASR(SE).
        **kwargs: Of ``timm.create_model``; ``features_only=True`` too.

    Returns:
        The model.

    Raises:
        ValueError: Unknown gate; a model that has ASR already, or no safe place for it.
        TypeError: Keywords of ASR without ``asr``, a site that cannot be scaled, or ``last_norm_init`` where a site
            is no norm or where weights are loaded.
    """
    options = {
        'asr': asr, 'asr_depth': asr_depth, 'asr_init': asr_init, 'asr_learnable': asr_learnable, 'rd_ratio': rd_ratio,
        'asr_sites': [asr_sites] if isinstance(asr_sites, str) else asr_sites and list(asr_sites)}
    options = {key: value for key, value in options.items() if value is not None}
    ours = is_ours(model_name)
    loads = pretrained or bool(kwargs.get('checkpoint_path'))
    if last_norm_init is not None and loads:
        raise TypeError('last_norm_init is where training starts, and loaded weights bring their own; leave one out.')
    if asr is None:
        own = [key for key in options if key != 'rd_ratio' and (key == 'asr_sites' or not ours)]
        if own or preserve:
            raise TypeError(f"{own[0] if own else 'preserve'} goes with ASR; name its gate, e.g. asr='se'.")
        model = timm.create_model(model_name, pretrained=pretrained, **options, **kwargs)
        return model if last_norm_init is None else init_last_norms(model, last_norm_init)
    gate = asr_gate(asr, rd_ratio)  # complains before anything is built or downloaded
    if ours and plain_architecture(model_name) != model_name.partition('.')[0]:
        raise ValueError(
            f"'{model_name}' has ASR already, by its name; leave asr out, or name the plain "
            f"'{plain_architecture(model_name)}'.")
    if preserve is None:
        preserve = loads
    model = timm.create_model(model_name, pretrained=pretrained, **kwargs)
    if has_asr(model):
        raise ValueError(f"'{model_name}' has ASR already; leave asr out.")
    if last_norm_init is not None:
        init_last_norms(model, last_norm_init, options.get('asr_sites'))  # type: ignore[arg-type]
    arguments = {ASR_KEYWORDS[key]: value for key, value in options.items() if key not in ('asr', 'rd_ratio')}
    attach_asr(model, gate, preserve=preserve, **arguments)  # type: ignore[arg-type]
    model.asr_options = options  # type: ignore[assignment]
    return model
