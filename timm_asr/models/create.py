"""Any timm model with ASR by one call."""

from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from ..asr.attach import VECTOR_KEYWORDS, attach_asr, take_vector_options
from ..asr.fold import has_asr
from ..asr.ungated import vector_maker
from .last_norm import init_last_norms
from .registry import plain_architecture, variant_of


def create_model(
        model_name: str, pretrained: bool = False, asr: str | None = None, rd_ratio: float | None = None,
        asr_sites: Sequence[str] | None = None, preserve: bool | None = None, last_norm_init: float | None = None,
        **kwargs: Any) -> nn.Module:
    """``timm.create_model``, with ASR where a gate is named.

    The model is timm's own class with ASR at its sites, and carries what it was made with as ``asr_options``, so that
    :func:`timm_asr.save_fused`, ``deepcopy`` and pickles need not be told.

    Args:
        model_name: Any name that timm takes: of the registry, with a pretrained tag, ``hf-hub:...``,
            ``local-dir:...``.
        pretrained: Load the weights that belong to the name.
        asr: Name of a foldable gate, or ``free``, ``scale`` or ``scalar`` for vectors without one; None for no ASR,
            which makes this ``timm.create_model``.
        rd_ratio: Hidden width of the gate over its channels, for gates with a hidden layer; by default that of the
            name with this ASR, or the gate's own. Without ``asr`` it goes to the model, as everything else does.
        asr_sites: Names or patterns of the layers to scale; by default those that are found (:func:`attach_asr`).
        preserve: Divide each scaled layer by the initial v, so that the model computes what its weights did before.
            By default where weights are loaded, since v, about 0.5, would change what they do.
        last_norm_init: Initial weight of the last norm of each residual branch, with or without ASR: the layers are
            those that ASR scales. ``create_model('resnet50', last_norm_init=0.5)`` is the control for ASR(SE).
        **kwargs: ``asr_depth``, ``asr_init``, ``asr_learnable``, ``asr_constant`` and ``asr_gain`` are ``depth``,
            ``init``, ``learnable``, ``constant`` and ``gain`` of :func:`timm_asr.attach_asr`. All others are those of
            ``timm.create_model``, ``features_only=True`` too.

    Returns:
        The model.

    Raises:
        ValueError: Unknown gate; a model that has ASR already, or no safe place for it.
        TypeError: Keywords of ASR without ``asr``, a site that cannot be scaled, or ``last_norm_init`` where a site
            is no norm or where weights are loaded.
    """
    variant = variant_of(model_name)
    if variant is not None and rd_ratio is None:
        rd_ratio = variant.backbone.rd_ratios.get(asr or '')
    options = {
        'asr': asr, 'rd_ratio': rd_ratio, **{key: kwargs.pop(key) for key in VECTOR_KEYWORDS if key in kwargs},
        'asr_sites': [asr_sites] if isinstance(asr_sites, str) else asr_sites and list(asr_sites)}
    options = {key: value for key, value in options.items() if value is not None}
    loads = pretrained or bool(kwargs.get('checkpoint_path'))
    if last_norm_init is not None and loads:
        raise TypeError('last_norm_init is where training starts, and loaded weights bring their own; leave one out.')
    if asr is None:
        own = [key for key in options if key != 'rd_ratio' and (key == 'asr_sites' or variant is None)]
        if own or preserve:
            raise TypeError(f"{own[0] if own else 'preserve'} goes with ASR; name its gate, e.g. asr='se'.")
        model = timm.create_model(model_name, pretrained=pretrained, **options, **kwargs)
        return model if last_norm_init is None else init_last_norms(model, last_norm_init)
    gate = vector_maker(asr, rd_ratio)  # complains before anything is built or downloaded
    if variant is not None and variant.asr:
        raise ValueError(f"'{model_name}' has ASR already, by its name; leave asr out, or name the plain "
                         f"'{plain_architecture(model_name)}'.")
    if preserve is None:
        preserve = loads
    model = timm.create_model(model_name, pretrained=pretrained, **kwargs)
    if has_asr(model):
        raise ValueError(f"'{model_name}' has ASR already; leave asr out.")
    if last_norm_init is not None:
        init_last_norms(model, last_norm_init, options.get('asr_sites'))
    attach_asr(model, gate, options.get('asr_sites'), preserve=preserve, **take_vector_options(dict(options)))
    model.asr_options = options  # type: ignore[assignment]
    return model
