"""From trained attention to none: gates replaced by what they were on average."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from ..inference.compare import Comparison
from .batch_norm import recalibrate_batch_norm
from .check import checked_fold
from .fold import Constant, Place, find_places, fold_constants
from .gates import GateStatistics, check_trainable_form, measure_gates, other_attention
from .images import Images
from .name import name_frozen, rename
from .report import FreezeReport, GateReport

_CHECKED_IMAGES = 2


def freeze_attention(
        model: nn.Module,
        loader: Iterable[Any],
        *,
        threshold: float | None = None,
        recalibrate_bn: bool = False,
        samples: int | None = None,
        progress: bool = True,
) -> FreezeReport:
    """Replace each channel gate of a trained network by its mean weights over images, in place, and fold these.

    A trained gate gives nearly the same weights to every image (ASR paper, section 1, "stripe observation"). Where
    that holds, the constant E[v] can stand for v(x), and a constant is folded exactly: x * E[v] is the layer before
    with scaled outputs, or the convolutions after with scaled inputs. Where neither is possible, one multiplication
    per channel is left. Every fold is compared with that multiplication on real images before it is kept.

    A channel gate is any module that multiplies its input by one number per image and channel (or adds one): SE, ECA,
    IE, SRM, SPA, SPE, RAS, effective SE, EfficientNet's squeeze-and-excite, global context, ... CBAM, SGE, DIA and
    what weighs branches against each other are left as they are and named in the report.

    Where no gate is left and what remains is a network that timm knows by name (``resnet50`` of ``seresnet50``), the
    model gets that name, so that ``timm_asr.save_fused`` writes it as such.

    Args:
        model: The network, or a wrapper (DDP, compiled) around it; before ``timm_asr.reparameterize``.
        loader: Gives (images, labels) or images, as timm's loaders do, each time it is iterated over; best those of
            the training set as they come in validation. Each batch should have images of all classes: with ``samples``
            a loader sorted by class would give those of the first classes alone, and ``recalibrate_bn`` averages over
            what the batches have each.
        threshold: Leave gates whose standard deviation over images, averaged over channels, exceeds this.
        recalibrate_bn: Estimate the statistics of the BatchNorms anew over the images afterwards.
        samples: Images to use, the first ones that the loader gives; all of them where None.
        progress: Show progress bars where standard error is a terminal.

    Returns:
        The report: per gate its mean and deviation and what became of it, and how far logits and top-1 moved.

    Raises:
        ValueError: No channel gate is inside, the model has its inference form, a number is out of range, or the
            images do not fit the model. The model is unchanged, as it is after any other error.
        TypeError: The loader can be read only once, or does not give images. The model is unchanged.
    """
    model = unwrap_model(model)
    if threshold is not None and threshold < 0:
        raise ValueError(f'threshold is {threshold}; it is a standard deviation, 0 or more.')
    check_trainable_form(model)
    images = Images(loader, model, samples, progress)
    before = copy.deepcopy(model).eval()  # the model itself changes at the very end, when nothing can fail any more
    few = _first_images(before, images)
    counter = _Counter(images)
    statistics = measure_gates(before, lambda: counter.batches('measuring gates'))
    left = other_attention(before)
    if not statistics:
        raise ValueError(_no_gate(model, left))

    reasons = {name: _why_left(s, counter.count, threshold) for name, s in statistics.items()}
    constants = {
        name: Constant(s.scale.mean if s.scale else None, s.shift.mean if s.shift else None)
        for name, s in statistics.items() if not reasons[name]}
    places = find_places(before, constants)
    after, places = checked_fold(before, constants, places, few)
    norms = 0
    if recalibrate_bn:
        norms = recalibrate_batch_norm(after, (x for x, _ in images.batches('BatchNorm statistics')))
    change = _compare(before, after, images)
    named = name_frozen(after, few) if places.keys() == statistics.keys() and not left else None

    report = FreezeReport(
        gates=[_gate_report(before, name, s, places.get(name), reasons[name]) for name, s in statistics.items()],
        left=left,
        images=counter.images,
        parameters=(_parameters(before), _parameters(after)),
        change=change,
        recalibrated=norms,
        architecture=named[0] if named else '',
    )
    fold_constants(model, constants, places)
    if norms:
        model.load_state_dict(after.state_dict())
    if named:
        rename(model, *named)
    return report


class _Counter:
    """Counts batches and images while they are read."""

    def __init__(self, source: Images) -> None:
        self.source, self.count, self.images = source, 0, 0

    def batches(self, what: str) -> Iterator[Any]:
        for images, _ in self.source.batches(what):
            self.count += 1
            self.images += len(images)
            yield images


@torch.no_grad()
def _first_images(model: nn.Module, source: Images) -> Any:
    """A few images that the model takes."""
    batches = source.batches('first images')
    images = next(batches)[0][:_CHECKED_IMAGES]
    batches.close()
    try:
        model(images)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        shape = tuple(images.shape) if isinstance(images, torch.Tensor) else [tuple(x.shape) for x in images]
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"This {type(model).__name__} cannot take the loader's images, {shape}: {text}") from None
    return images


def _no_gate(model: nn.Module, left: dict[str, str]) -> str:
    text = f'No channel gate (SE, ECA, ...) is inside this {type(model).__name__}, so there is nothing to freeze'
    if left:
        name, reason = next(iter(left.items()))
        text += f"; '{name}' (a {type(model.get_submodule(name)).__name__}) is none, since {reason}"
    return f'{text}.'


def _why_left(statistics: GateStatistics, batches: int, threshold: float | None) -> str:
    if statistics.calls > batches:
        return 'left: several places share it'
    parts = [part for part in (statistics.scale, statistics.shift) if part]
    if threshold is not None and max(part.std.mean().item() for part in parts) > threshold:
        return f'left: its deviation exceeds {threshold:g}'
    return ''


def _gate_report(
        model: nn.Module, name: str, statistics: GateStatistics, place: Place | None, reason: str) -> GateReport:
    part = statistics.scale or statistics.shift
    what = f'{place}' if place else reason
    if statistics.shift:
        what += ' (adds)' if statistics.scale is None else ' (scales and adds)'
    return GateReport(name, type(model.get_submodule(name)).__name__, part.mean, part.std, place is not None, what)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _compare(before: nn.Module, after: nn.Module, source: Images) -> Comparison | None:
    change = Comparison()
    for images, labels in source.batches('comparing'):
        logits = before(images)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            return None
        change.update(logits, after(images), labels)
    return change
