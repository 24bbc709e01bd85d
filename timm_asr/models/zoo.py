"""What all models of this package share: keywords and the inference form."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import get_device_dtype
from torch import nn

from ..asr.attach import attach_asr, take_vector_options
from ..asr.sites import class_sites
from ..asr.ungated import vector_maker
from ..gates.gate import ChannelGate
from ..gates.ie import IEBN2d
from ..gates.spe import SPE, shares_at_once
from ..gates.table import gate_arguments, gate_options, get_gate
from ..inference.reparameterize import Reparameterizable
from .authors import our_names
from .last_norm import init_last_norms


class ZooModel(Reparameterizable):
    """Mixed into a timm model class: gates in its blocks, ASR at its sites, and ``reparameterize``.

    A class whose blocks have no keyword for attention says in ``GATED`` which these are and where it goes.

    Args:
        gate: Name of a gate that stands in every block.
        asr: Name of a foldable gate, or of a vector without one, for ASR at the known sites; with it ``asr_depth``,
            ``asr_init``, ``asr_learnable``, ``asr_constant`` and ``asr_gain``, see :func:`timm_asr.attach_asr`.
        last_norm_init: Initial weight of the last norm of each residual branch, a number; 0 is timm's
            ``zero_init_last``. By default the network's own. Weights that are loaded replace it.
        rd_ratio: Hidden width over channels, of gates that have a hidden layer; and the further options that the
            class of a gate names in ``options``: ``se_bias``, ``eca_kernel``, ``spe_mix``, ``ras_depth``, ...

    Raises:
        TypeError: A keyword is unknown, or has no meaning for this model.
        ValueError: A value is out of range.
    """

    #: Class of the blocks, name inside them that a gate gets, and that of the convolution whose output channels it has;
    #: None where the blocks take ``attn_layer`` themselves.
    GATED: tuple[type[nn.Module], str, str] | None = None

    #: Its SPE gates learn their mix, so that a training step computes the shares of all at once.
    mixes = False

    def __init__(
            self, *args: Any, gate: str | None = None, asr: str | None = None, last_norm_init: float | None = None,
            **kwargs: Any) -> None:
        options = take_vector_options(kwargs)
        if options and asr is None:
            raise TypeError(f"asr_{next(iter(options))} is for models with ASR; this one has none (asr='se' adds it).")
        own = {name: kwargs.pop(name) for name in gate_options() if name in kwargs}
        given = [name for name, value in own.items() if value is not None]
        if asr is None and gate is None and given:
            raise TypeError(f'{given[0]} is for models with a gate or with ASR; this one has neither.')
        if kwargs.get('norm_layer') == 'iebn':
            kwargs['norm_layer'] = IEBN2d
        if gate is not None:
            attn_layer = partial(get_gate(gate), **gate_arguments(gate, own))
            if self.GATED is None:
                kwargs['block_args'] = {**(kwargs.get('block_args') or {}), 'attn_layer': attn_layer}
        if asr is not None:
            asr_layer = vector_maker(asr, **own)
        super().__init__(*args, **kwargs)
        for module in list(self.modules()):  # type: ignore[attr-defined]
            if isinstance(module, ChannelGate):
                module.reset_layers()
        if gate is not None and self.GATED is not None:
            kind, place, conv = self.GATED
            for block in [m for m in self.modules() if isinstance(m, kind)]:  # type: ignore[attr-defined]
                block.set_submodule(place, attn_layer(
                    block.get_submodule(conv).out_channels, **get_device_dtype(self)))  # type: ignore[arg-type]
        if asr is not None or last_norm_init is not None:
            # Following an image through the network finds the same sites in blocks of known classes, and takes longer.
            sites = class_sites(self) or None  # type: ignore[arg-type]
            if asr is not None and sites is None and kwargs.get('norm_layer') is IEBN2d:
                raise TypeError('IEBN weighs its scale by the image, so that no constant folds into it, and the '
                                'residual branches of this model end in it; a model has asr or iebn.')
            if last_norm_init is not None:
                init_last_norms(self, last_norm_init, sites)  # type: ignore[arg-type]
            if asr is not None:
                attach_asr(self, asr_layer, sites=sites, preserve=False, **options)  # type: ignore[arg-type]
        self.mixes = any(isinstance(m, SPE) and m.mix is not None for m in self.modules())  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # No hook: TorchScript would compile it. A compiler joins small operations by itself.
        if not self.mixes or not torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        gates = [m for m in self.modules() if isinstance(m, SPE) and m.mix is not None]  # type: ignore[attr-defined]
        with shares_at_once(gates):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, those of the papers' authors too (:mod:`timm_asr.models.authors`)."""
        return super().load_state_dict(our_names(state_dict), strict, assign)  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        own = {prefix + name for name, _ in self.named_parameters()}  # type: ignore[attr-defined]
        foreign = [k for k in state_dict if k.startswith(prefix) and k.endswith('.psi') and k not in own]
        if foreign:
            args[-1].append(
                f"This is a trainable checkpoint with ASR vectors ('{foreign[0]}') and the model is folded or plain "
                'there: load it into the ASR architecture, then fold_asr(model).')
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
