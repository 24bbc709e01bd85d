"""The names of this package: which there are, what each one is, and how timm learns them."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg, is_model, register_model
from torch import nn

from ..gates.table import list_gates, list_units
from .authors import checkpoint_filter_fn
from .pretrained import with_shipped

#: The ASR paper's gates.
ASR_GATES = ('se', 'ie', 'srm', 'eca', 'spa')
#: What a residual network has names for: every gate, ASR by every gate that folds, and units.
EVERYTHING: dict[str, tuple[str, ...]] = {
    'gates': tuple(list_gates()), 'asr': tuple(list_gates(foldable=True)), 'units': tuple(list_units())}

#: What images go through: the same under every name of a network, or a comparison would measure it too.
_IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode', 'test_input_size', 'test_crop_pct')

_VARIANTS: dict[str, 'Variant'] = {}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that gets names: the plain one, and those with attention.

    ``Backbone('tinynet', 'TinyNet', TinyNet, cifar_cfg(), {'layers': (1, 1, 1)})`` makes ``tinynet``, ``tinynet_se``,
    ``tinynet_asr_se``, ``tinynet_se_asr_se`` and the same of the other gates of the ASR paper.

    Attributes:
        name: The first part of every name.
        title: What it is, for the docstrings of the entrypoints.
        model: Its class, with the keywords of :class:`timm_asr.models.zoo.ZooModel`.
        cfg: Its default configuration (:mod:`timm_asr.models.cfgs`), or a function that makes one for each variant.
        arguments: Keywords of timm's ``build_model_with_cfg``, those of the model among them.
        gates: Gates that have names in its blocks.
        asr: Gates that have names as ASR; with those in ``gates`` too, as both.
        units: Units that have names (DIA).
        stock: timm's name of the plain network, whose images all others have. Empty where timm has none: then that name
            is registered too.
        weights: Tag -> further entries of the configuration, for weights of the plain network from elsewhere.
        rd_ratios: Gate -> its hidden width over channels, where it is not the gate's own.
    """

    name: str
    title: str
    model: type[nn.Module]
    cfg: Mapping[str, Any] | Callable[['Variant'], Mapping[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[str, ...] = ASR_GATES
    asr: tuple[str, ...] = ASR_GATES
    units: tuple[str, ...] = ()
    stock: str = ''
    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rd_ratios: Mapping[str, float] = field(default_factory=dict)

    def variants(self) -> Iterator['Variant']:
        """All that get a name."""
        if not self.stock:
            yield Variant(self)
        yield from (Variant(self, dia=unit) for unit in self.units)
        yield from (Variant(self, gate) for gate in self.gates)
        for gate in self.asr:
            yield Variant(self, asr=gate)
            if gate in self.gates:
                yield Variant(self, gate, gate)


@dataclass(frozen=True)
class Variant:
    """What a registered name stands for: a backbone, the gate in its blocks, the gate of its ASR, its stages' unit."""

    backbone: Backbone
    gate: str = ''
    asr: str = ''
    dia: str = ''

    @property
    def name(self) -> str:
        """``<backbone>[_<gate>][_asr_<gate>][_dia_<unit>]``; timm's own name where timm has the network."""
        ends = (self.gate, self.asr and f'asr_{self.asr}', self.dia and f'dia_{self.dia}')
        if not any(ends):
            return self.backbone.stock or self.backbone.name
        return '_'.join((self.backbone.name, *filter(None, ends)))

    @property
    def options(self) -> dict[str, str]:
        """Keywords of the model that make it this variant."""
        return {key: value for key, value in (('gate', self.gate), ('asr', self.asr), ('dia', self.dia)) if value}

    def without(self, *parts: str) -> str:
        """Name of the network without some of ``'gate'``, ``'asr'`` and ``'dia'``."""
        return replace(self, **dict.fromkeys(parts, '')).name

    @property
    def title(self) -> str:
        """What it is, in words."""
        return (
            self.backbone.title
            + (f', {self.gate} in every block' if self.gate else '')
            + (f', ASR({self.asr}) where residual branches end' if self.asr else '')
            + (f', one {self.dia} shared by the blocks of each stage' if self.dia else ''))


def _build(backbone: Backbone, name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """A variant of a backbone by timm's builder: its arguments, then those of the caller."""
    own = copy.deepcopy(dict(backbone.arguments))  # timm writes into feature_cfg
    if 'block_args' in own:
        kwargs['block_args'] = {**own['block_args'], **(kwargs.get('block_args') or {})}
    kwargs = {**own, **kwargs}
    for gate in (kwargs.get('gate'), kwargs.get('asr'), kwargs.get('dia')):
        if gate in backbone.rd_ratios:
            kwargs.setdefault('rd_ratio', backbone.rd_ratios[gate])
    kwargs.setdefault('pretrained_filter_fn', checkpoint_filter_fn)
    return build_model_with_cfg(backbone.model, name, pretrained, **kwargs)


def register_backbones(module: str, *backbones: Backbone) -> None:
    """Register every variant of some backbones with timm, as models of the calling ``module`` (its ``__name__``).

    Raises:
        RuntimeError: A name is taken, by timm or by this package.
    """
    there = sys.modules[module]
    variants = [variant for backbone in backbones for variant in backbone.variants()]
    rows: dict[str, dict[str, Any]] = {}
    for variant in variants:
        cfg = variant.backbone.cfg
        row = dict(cfg(variant) if callable(cfg) else cfg)
        stock = get_pretrained_cfg(variant.backbone.stock) if variant.backbone.stock else None
        row |= {key: getattr(stock, key) for key in _IMAGES if getattr(stock, key, None) is not None}
        tags = {} if variant.options else variant.backbone.weights
        rows |= {f'{variant.name}.{tag}': {**row, **more} for tag, more in tags.items()} or {variant.name: row}
    there.default_cfgs = generate_default_cfgs(with_shipped(rows))  # type: ignore[attr-defined]
    for variant in variants:
        _register(module, variant)


def _register(module: str, variant: Variant) -> None:
    name, backbone = variant.name, variant.backbone
    if is_model(name):
        raise RuntimeError(f"The model name '{name}' is registered already.")

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        try:
            return _build(backbone, name, pretrained, **{**variant.options, **kwargs})
        except RuntimeError as error:
            plain = variant.without('asr')
            if not (variant.asr and str(error).startswith('No pretrained weights')
                    and getattr(get_pretrained_cfg(plain), 'has_weights', False)):
                raise
            raise RuntimeError(f"{error} timm_asr.create_model('{plain}', pretrained=True, asr='{variant.asr}') puts "
                               f'ASR on those of {plain}.') from None

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = module
    entrypoint.__doc__ = f'{variant.title}.'
    setattr(sys.modules[module], name, entrypoint)
    register_model(entrypoint)
    _VARIANTS[name] = variant


def variant_of(name: str) -> Variant | None:
    """What a name of this package stands for, a pretrained tag left aside; None for a name that is not ours."""
    return _VARIANTS.get(name.partition('.')[0])


def list_variants() -> list[Variant]:
    """All names of this package, as what they stand for."""
    return list(_VARIANTS.values())


def plain_architecture(name: str) -> str:
    """The architecture that is left of a model when its ASR is folded: 'resnet50' for 'resnet50_asr_se'.

    A name that this package does not know, a stock timm one say, is its own answer.
    """
    variant = variant_of(name)
    return variant.without('asr') if variant else name.partition('.')[0]
