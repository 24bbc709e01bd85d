"""The plain network, the one with attention and the one that was trained, timed in turns: the table at a run's end.

                              resnet20  resnet20_se  resnet20_asr_se
    training step              21.3 ms  1.17 (1.15-1.20)  1.03 (1.01-1.05)
    inference, as trained       5.1 ms  1.33 (1.30-1.36)  1.03 (1.02-1.04)
    inference, folded     same network  1.16 (1.13-1.19)  same network as resnet20
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models import is_model
from torch import nn

from ..errors import BadInput
from ..inference.reparameterize import reparameterize
from ..models.auxiliary import auxiliary_loss
from ..models.counts import count_parameters
from ..models.registry import variant_of
from .build import build_model, title_of
from .reports import aligned
from .versus import Spread, interleave, ratios

#: Seconds after which no further round starts, for each of the two measurements.
BUDGET = 30.0
ROUNDS = 15


@dataclass
class Column:
    """One network as trained and in its inference form, with its accuracy in percent where it was trained."""

    name: str
    trained: nn.Module
    form: nn.Module
    top1: float | None = None


def columns_of(args: argparse.Namespace, model: nn.Module, form: nn.Module, top1: float | None) -> list[Column]:
    """The columns for a run: plain, with the gate in its blocks, and what the run trained, at the end."""
    own, variant = title_of(args), variant_of(args.model)
    names = [args.model]
    if variant is not None:
        gate = args.asr or variant.asr or variant.gate
        plain = replace(variant, gate='', asr='', dia='')
        names = [plain.name, *([replace(plain, gate=gate).name] if gate else [])]
    device = next(model.parameters()).device
    columns = []
    for name in names:
        other = beside(name, args) if name != own and is_model(name) else None
        if other is not None:
            columns.append(Column(name, other.to(device), reparameterize(copy.deepcopy(other)).to(device)))
    return [*columns, Column(own, model, form, top1)]


def beside(name: str, args: argparse.Namespace) -> nn.Module | None:
    """Another network by the options of a run, to count and to time; None where they do not make one."""
    other = argparse.Namespace(**vars(args))
    other.model, other.asr = name, None
    other.model_kwargs = {key: value for key, value in args.model_kwargs.items()
                          if not key.startswith(('asr', 'rd_ratio'))}
    try:
        return build_model(other, weights=False).eval()
    except BadInput:
        return None


def structure(model: nn.Module) -> tuple:
    """What two networks have in common that compute alike: their layers, in order, and the shapes of these."""
    return tuple((name, type(module).__name__, tuple(tuple(p.shape) for p in module.parameters()))
                 for name, module in model.named_modules() if not any(module.children()))


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode():
            model(images)
    return step


def _training(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(images), labels) + auxiliary_loss(model)).backward()
        optimizer.step()
    return step


def measure(columns: Sequence[Column], shape: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Time all networks in turns; of two that are the same network, one. Images are (B, C, H, W) = ``shape``.

    Returns:
        By name of the column: ``parameters``, ``parameters_inference``, ``top1`` where known, and ``train``, ``infer``
        and ``infer_folded``, each ``[milliseconds, ratio to the first, first quartile, third quartile]`` or the text
        ``'same network[ as NAME]'``.
    """
    images = torch.randn(tuple(shape), device=device)
    # The first network of each structure: (name, whether as trained).
    first: dict[tuple, tuple[str, bool]] = {}
    networks: dict[tuple[str, bool], nn.Module] = {}
    for as_trained in (True, False):
        for column in columns:
            network = column.trained if as_trained else column.form
            key = first.setdefault(structure(network), (column.name, as_trained))
            networks.setdefault(key, network)
    infer = interleave({key: _forward(network, images) for key, network in networks.items()},  # type: ignore[misc]
                       rounds=ROUNDS, warmup=2, budget=BUDGET, device=device)
    train = interleave({column.name: _training(column.trained, images) for column in columns},
                       rounds=ROUNDS, warmup=2, budget=BUDGET, device=device)
    rows: dict[str, Any] = {}
    for column in columns:
        row: dict[str, Any] = {
            'parameters': count_parameters(column.trained), 'parameters_inference': count_parameters(column.form)}
        row |= {} if column.top1 is None else {'top1': column.top1}
        row['train'] = _figures(train, column.name, columns[0].name)
        for name, as_trained, network in (('infer', True, column.trained), ('infer_folded', False, column.form)):
            key = first[structure(network)]
            row[name] = (_figures(infer, key, (columns[0].name, True)) if key == (column.name, as_trained) else
                         'same network' if key[0] == column.name else f'same network as {key[0]}')
        rows[column.name] = row
    return rows


def _figures(times: Mapping[Any, Sequence[float]], key: Any, base: Any) -> list[float]:
    spread: Spread = ratios(times, base)[key]
    return [round(1000 * statistics.median(times[key]), 3), *(round(value, 4) for value in spread)]


def milliseconds(rows: Mapping[str, Any], name: str, what: str) -> float:
    """The time of a network, or that of the one that is the same network."""
    value = rows[name][what]
    if not isinstance(value, str):
        return value[0]
    return milliseconds(rows, value.removeprefix('same network').removeprefix(' as ') or name, 'infer')


def table(rows: Mapping[str, Any], images: int) -> str:
    """What :func:`measure` found, as text; ``images`` is how many the accuracy is of."""
    first = next(iter(rows))

    def timed(name: str, what: str) -> str:
        value = rows[name][what]
        if isinstance(value, str):
            return value
        return f'{value[0]:.3g} ms' if name == first else f'{value[1]:.2f} ({value[2]:.2f}-{value[3]:.2f})'

    lines = [['', *rows]]
    lines += [[label, *(timed(name, what) for name in rows)] for label, what in (
        ('training step', 'train'), ('inference, as trained', 'infer'), ('inference, folded', 'infer_folded'))]
    lines += [[label, *(f'{row[key]:,}' for row in rows.values())] for label, key in (
        ('parameters', 'parameters'), ('parameters, folded', 'parameters_inference'))]
    lines.append([f'top-1 on {images} images, %',
                  *(f'{row["top1"]:.2f}' if 'top1' in row else 'not trained' for row in rows.values())])
    return '\n'.join([*aligned(lines),
                      f'Times are multiples of those of {first}: the median of all rounds, and the quartiles.'])
