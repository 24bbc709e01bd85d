"""From trained attention to none: gates replaced by what they were on average."""

import copy
from collections.abc import Iterable
from typing import Any

import timm
import torch
from timm.layers import BatNonLocalAttn, NonLocalAttn, SelectiveKernel, SplitAttn, cbam, coord_attn
from timm.models import get_model_args, is_model
from timm.utils import unwrap_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..analysis.gates import GateStatistics, measure_gates
from ..analysis.images import Images
from ..asr.attach import ASR_KEYWORDS
from ..asr.fold import has_asr
from ..gates.forms import InferenceForm
from ..gates.gate import ChannelGate
from ..gates.precision import without_tf32
from ..gates.shared import SharedUnit
from ..gates.table import gate_options
from ..inference.compare import Comparison, close
from ..models.counts import count_parameters
from ..models.registry import variant_of
from .fold import Place, checked_fold, find_places, fold_constants
from .report import Cost, FreezeReport, GateReport

_POSITIONS = 'it weighs positions too'
#: Attention that no constant per channel can stand for, and why. What is inside such a module is left alone too.
NOT_CHANNEL_GATES: dict[type[nn.Module], str] = {
    **dict.fromkeys((
        cbam.CbamModule, cbam.LightCbamModule, coord_attn.CoordAttn, coord_attn.SimpleCoordAttn,
        coord_attn.EfficientLocalAttn, coord_attn.StripAttn, NonLocalAttn, BatNonLocalAttn), _POSITIONS),
    **dict.fromkeys((SelectiveKernel, SplitAttn), 'it weighs branches against each other'),
    SharedUnit: 'the blocks of a stage share it'}
# What timm's names have where a network of the same name without it has no gates.
_IN_NAMES = ('legacy_se', 'ese_', 'eca_', 'eca', 'se')


@without_tf32()  # in which a right fold would look like a wrong one
def freeze_attention(
        model: nn.Module, loader: Iterable[Any], *, threshold: float | None = None, recalibrate_bn: bool = False,
        samples: int | None = None, progress: bool = True, eval_loader: Iterable[Any] | None = None,
        thresholds: int = 0) -> FreezeReport:
    """Replace each channel gate of a trained network by its mean weights over images, in place, and fold these.

    ::

        report = timm_asr.freeze_attention(model, train_images, eval_loader=validation_images, threshold=0.05)
        print(report)

    A trained gate gives nearly the same weights to every image (ASR paper, section 1, "stripe observation"). Where
    that holds, the constant E[v] can stand for v(x), and a constant is folded exactly: x * E[v] is the layer before
    with scaled outputs, or the convolutions after with scaled inputs. Where neither is possible, one multiplication
    per channel is left. Every fold is compared with that multiplication on real images before it is kept.

    A channel gate is any module that multiplies its input by one number per image and channel: SE, ECA, IE, SRM, SPA,
    SPE, RAS, effective SE, EfficientNet's squeeze-and-excite, global context, ... CBAM, SGE, DIA and what
    weighs branches against each other are left as they are and named in the report.

    Where no gate is left and what remains is a network that timm knows by name (``resnet50`` of ``seresnet50``), the
    model gets that name, so that ``timm_asr.save_fused`` writes it as such.

    Args:
        model: The network, or a wrapper (DDP, compiled) around it; before ``timm_asr.reparameterize``.
        loader: The images that the gates are measured on: gives (images, labels) or images, as timm's loaders do, each
            time it is iterated over. Best are those of the training set as they come in validation. Each batch should
            have images of all classes: with ``samples``, a loader sorted by class would give the first classes alone.
        threshold: Leave gates whose standard deviation over images, averaged over channels, exceeds this.
        recalibrate_bn: Estimate the statistics of the BatchNorms anew over the images afterwards. The report says
            what this does apart from freezing.
        samples: Images of ``loader`` to use, the first ones that it gives; all of them where None.
        progress: Show progress bars where standard error is a terminal.
        eval_loader: The images that logits and accuracy are compared on; those of ``loader`` where None.
        thresholds: Also report what so many thresholds would cost; 0 for none.

    Returns:
        The report: per gate its mean and deviation and what became of it, and how far logits and top-1 moved.

    Raises:
        ValueError: No channel gate is inside, the model has its inference form, a number is out of range, or images or
            weights are not finite. The model is unchanged, as it is after any other error.
        TypeError: The loader can be read only once, or does not give images. The model is unchanged.
    """
    model = unwrap_model(model)
    if threshold is not None and threshold < 0:
        raise ValueError(f'threshold is {threshold}; it is a standard deviation, 0 or more.')
    names = candidates(model)
    images = Images(loader, model, samples, progress)
    compared = images if eval_loader is None else Images(eval_loader, model, None, progress)
    before = copy.deepcopy(model).eval()  # the model itself changes at the very end, when nothing can fail any more
    few = next(images.inputs('first images'))[:2]
    gates = measure_gates(before, images.inputs('measuring gates'), names)
    measured, left = images.seen, other_attention(before)
    if not gates:
        others = [f"; '{name}' (a {type(model.get_submodule(name)).__name__}) is none, since {reason}"
                  for name, reason in left.items()]
        raise ValueError(f'No channel gate (SE, ECA, ...) is inside this {type(model).__name__}, so there is nothing '
                         f'to freeze{"".join(others[:1])}.')

    def chosen(most: float | None) -> dict[str, torch.Tensor]:
        return {name: gate.weights.mean for name, gate in gates.items() if not _why_left(gate, measured, most)}

    constants = chosen(threshold)
    after, places = checked_fold(before, constants, find_places(before, constants), few)
    named = _name_frozen(after, few) if places.keys() == gates.keys() and not left else None
    variants, norms = {'frozen': after}, 0
    if recalibrate_bn:
        variants['new statistics alone'] = copy.deepcopy(before)
        variants['frozen, new statistics'] = copy.deepcopy(after)
        for key in list(variants)[1:]:
            norms = recalibrate_batch_norm(variants[key], images.inputs('BatchNorm statistics'))
    ladder = _ladder([gate for gate in gates.values() if not _why_left(gate, measured, None)], thresholds)
    for step in ladder:
        variants[f'{step}'] = copy.deepcopy(before)
        fold_constants(variants[f'{step}'], chosen(step), dict.fromkeys(chosen(step), Place()))
    changes = _compare(before, variants, compared)

    report = FreezeReport(
        gates=[GateReport(name, gate.kind, gate.weights.mean, gate.weights.std, name in places,
                          str(places.get(name, _why_left(gate, measured, threshold)))) for name, gate in gates.items()],
        left=left,
        images=measured,
        parameters=(count_parameters(before), count_parameters(after)),
        changes={key: changes[key] for key in variants if key in changes and key not in map(str, ladder)},
        costs=[Cost(step, len(chosen(step)), changes[f'{step}']) for step in ladder if changes],
        same_images=compared is images,
        recalibrated=norms,
        architecture=named[0] if named else '')
    fold_constants(model, constants, places)
    if norms:
        model.load_state_dict(variants['frozen, new statistics'].state_dict())
    if named:
        config = {**model.pretrained_cfg, 'architecture': named[0]}  # type: ignore[dict-item]
        model.pretrained_cfg, model.default_cfg, model._model_args = config, config, named[1]
        vars(model).pop('frozen_from', None)  # of a first freezing, which left some gates
    else:  # for save_fused, which writes networks that have a name
        model.frozen_from = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    return report


def _why_left(gate: GateStatistics, images: int, threshold: float | None) -> str:
    if gate.weights.count > images:
        return 'left: several places share it'
    if threshold is not None and gate.weights.std.mean() > threshold:
        return f'left: its deviation exceeds {threshold:g}'
    return ''


def _ladder(gates: list[GateStatistics], count: int) -> list[float]:
    """Thresholds that leave fewer and fewer gates, three digits each; the last leaves none."""
    stds = sorted(gate.weights.std.mean().item() for gate in gates)
    chosen = [stds[max(1, round(len(stds) * k / count)) - 1] for k in range(1, count + 1)] if stds else []
    return sorted({float(f'{1.005 * std + 1e-12:.3g}') for std in chosen})


@torch.no_grad()
def _compare(before: nn.Module, variants: dict[str, nn.Module], source: Images) -> dict[str, Comparison]:
    """How far each variant's logits are from those before; empty where the model puts out no logits (B, K)."""
    changes: dict[str, Comparison] = {key: Comparison() for key in variants}
    for images, labels in source.batches('comparing'):
        logits = before(images)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            return {}
        for key, variant in variants.items():
            changes[key].update(logits, variant(images), labels)
    return changes


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of every BatchNorm by their averages over batches, in place.

    Only the BatchNorms run in training mode, each batch counts the same, and a norm that is frozen or does not run
    keeps its statistics. PyTorch's ``update_bn`` would turn dropout and stochastic depth on as well. One image after
    larger batches, what is left over at the end, is not used: on maps of one pixel it has no variance.

    Returns the number of BatchNorms whose statistics are new.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the plain average over all batches
    largest = 0
    for images in batches:
        largest = max(largest, len(images))
        if len(images) > 1 or largest == 1:
            model(images)
    renewed = [bool(norm.num_batches_tracked) for norm in norms]
    for norm, (momentum, state), new in zip(norms, before, renewed, strict=True):
        norm.eval().momentum = momentum
        if not new:
            norm.load_state_dict(state)
    return sum(renewed)


def other_attention(model: nn.Module) -> dict[str, str]:
    """Names of the modules with attention that is not a gate per channel, each with the reason."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ChannelGate) and not module.per_channel:
            found[name] = _POSITIONS
        found.update((name, reason) for kind, reason in NOT_CHANNEL_GATES.items() if isinstance(module, kind))
    return found


def candidates(model: nn.Module) -> set[str]:
    """Names of the modules that may be channel gates: all with parameters, outside of other attention.

    Raises:
        ValueError: The model has its inference form, or weights that are not finite.
    """
    for name, module in model.named_modules():
        if isinstance(module, InferenceForm):
            raise ValueError(
                f"'{name}' has its inference form already, a {type(module).__name__}, in which its gate cannot be "
                'replaced; freeze_attention goes before reparameterize().')
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"The weights of this {type(model).__name__} are not finite: look at '{name}'.")
    closed = tuple(f'{name}.' for name in other_attention(model))
    return {
        name for name, module in model.named_modules()
        if name and not f'{name}.'.startswith(closed) and next(module.parameters(), None) is not None}


def _gateless(name: str, args: dict[str, Any], asr: bool) -> list[tuple[str, dict[str, Any]]]:
    drop = {'gate', 'last_norm_init', *(() if asr else (*ASR_KEYWORDS, *gate_options()))}
    ours = {key: value for key, value in args.items() if key not in drop}
    found = [(name, ours)] if 'gate' in args else []
    if variant := variant_of(name):
        found.append((variant.without('gate', *(() if asr else ('asr',))), ours))
    found += [(name.replace(word, '', 1), args) for word in _IN_NAMES if word in name]
    return [*((other, own) for other, own in found if is_model(other)), (name, {**args, 'se_ratio': 0})]


@torch.no_grad()
@torch.random.fork_rng(devices=[])  # a network is made only to compare with
def _name_frozen(model: nn.Module, images: torch.Tensor) -> tuple[str, dict[str, Any]] | None:
    """Name and keywords of a registered network that takes a frozen model's state dict and is the same function.

    Both are run on the images; None where there is none, as a network may take the weights and compute something else.
    """
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    wanted = model(images) if name and hasattr(model, 'num_classes') else None
    if not isinstance(wanted, torch.Tensor):
        return None
    for candidate, args in _gateless(name, get_model_args(model), has_asr(model)):
        try:
            stock = timm.create_model(candidate, **args).to(images).eval()
            stock.load_state_dict(model.state_dict(), strict=True)
        except (RuntimeError, TypeError, ValueError):  # another network, or one without that keyword
            continue
        if close(wanted, stock(images)):
            return candidate, args
    return None
