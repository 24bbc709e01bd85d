"""The plain network, the one with attention and the one that was trained, timed in turns: the table at a run's end."""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..asr.scaled import channel_dim, out_channels
from ..asr.wrapper import ASR
from ..errors import BadInput
from ..gates.table import get_gate, list_gates
from ..inference.reparameterize import reparameterize
from ..models.auxiliary import auxiliary_loss
from ..models.counts import count_parameters
from ..models.registry import variant_of
from .build import build_model, title_of
from .versus import interleave, ratios

#: Rounds of each of the two measurements, and seconds after which no further one starts.
TURNS: dict[str, Any] = {'rounds': 15, 'warmup': 2, 'budget': 30.0}


class Gated(nn.Module):
    """A layer whose output channels are weighed by a gate that sees them: ordinary attention at a site of ASR."""

    def __init__(self, layer: nn.Module, gate: str, **kwargs: Any) -> None:
        super().__init__()
        self.layer, self.gate, self.dim = layer, get_gate(gate)(out_channels(layer), **kwargs), channel_dim(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x).movedim(self.dim, 1)
        maps = y if y.ndim == 4 else y.flatten(2).unsqueeze(-1)  # tokens as a map that is one pixel wide
        return self.gate(maps).view(y.shape).movedim(1, self.dim)


def columns_of(args: argparse.Namespace, model: nn.Module, form: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Networks as trained and in their inference form, by name: plain, with attention, and what a run trained, last.

    The gate of the attention is that of the model. It is in the blocks where the registry has such a network, else at
    the sites of ASR. A network that the options of the run do not make is left out.
    """
    own, variant = title_of(args), variant_of(args.model)
    plain = variant.without('gate', 'asr', 'dia') if variant else args.model
    gate = args.asr or (variant and (variant.asr or variant.gate))
    gated = replace(variant, gate=gate, asr='', dia='').name if variant else f'{plain}_{gate}'
    kwargs = {key: value for key, value in args.model_kwargs.items() if not key.startswith('asr')}
    width = {'rd_ratio': kwargs.pop('rd_ratio')} if 'rd_ratio' in kwargs else {}  # of the gate
    columns = {}
    for name in dict.fromkeys((plain, gated) if gate in list_gates() else (plain,)):
        if name == own:
            continue
        named = name == plain or variant_of(name)
        # Without dropout and stochastic depth, which the network has not that was opened from its checkpoint.
        same = {**vars(args), 'model': name if named else plain, 'asr': None, 'drop': 0.0, 'drop_path': None,
                'drop_connect': None, 'drop_block': None,
                'model_kwargs': {**kwargs, **width} if named and name != plain else kwargs}
        with suppress(BadInput):
            other = build_model(argparse.Namespace(**same), weights=False)
            for site in [] if named else [key for key, module in model.named_modules() if isinstance(module, ASR)]:
                other.set_submodule(site, Gated(other.get_submodule(site), gate, **width))
            layout = torch.channels_last if args.channels_last else torch.contiguous_format
            other.eval().to(device=next(model.parameters()).device, memory_format=layout)
            columns[name] = (other, reparameterize(copy.deepcopy(other)))
    return {**columns, own: (model, form)}


def structure(model: nn.Module) -> tuple:
    """What two networks have in common that compute alike: their layers, in order, and the shapes of these."""
    return tuple((name, type(module).__name__, tuple(tuple(p.shape) for p in module.parameters()))
                 for name, module in model.named_modules() if not any(module.children()))


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    return torch.inference_mode()(lambda: model(images))


def _training(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(images), labels) + auxiliary_loss(model)).backward()
        optimizer.step()
    return step


def measure(columns: Mapping[str, tuple[nn.Module, nn.Module]], shape: Sequence[int],
            device: torch.device) -> dict[str, Any]:
    """Time all networks in turns; of two that are the same network, one. Images are (B, C, H, W) = ``shape``.

    By name of the column: ``parameters``, ``parameters_inference``, ``images_per_second`` as trained, ``_folded`` too,
    and ``train``, ``infer`` and ``infer_folded``, each ``[milliseconds, ratio to the first, first quartile, third
    quartile]`` or the text ``'same network[ as NAME]'``.
    """
    images = torch.randn(tuple(shape), device=device)
    networks = {(name, kind): network for name, column in columns.items()
                for kind, network in zip(('infer', 'infer_folded'), column, strict=True)}
    first: dict[tuple, tuple[str, str]] = {}  # of each structure
    for key, network in networks.items():
        first.setdefault(structure(network), key)
    infer: Any = interleave({key: _forward(networks[key], images) for key in first.values()},  # type: ignore[misc]
                            device=device, **TURNS)
    train = interleave({name: _training(trained, images) for name, (trained, _) in columns.items()}, device=device,
                       **TURNS)
    base = next(iter(columns))
    rows: dict[str, Any] = {}
    for name, (trained, form) in columns.items():
        row = rows[name] = {'parameters': count_parameters(trained), 'parameters_inference': count_parameters(form),
                            'train': _figures(train, name, base)}
        for kind, end in (('infer', ''), ('infer_folded', '_folded')):
            key = first[structure(networks[name, kind])]
            row[kind] = (_figures(infer, key, (base, 'infer')) if key == (name, kind) else
                         'same network' if key[0] == name else f'same network as {key[0]}')
            row[f'images_per_second{end}'] = round(len(images) / statistics.median(infer[key]), 1)
    return rows


def _figures(times: Mapping[Any, Sequence[float]], key: Any, base: Any) -> list[float]:
    return [round(1000 * statistics.median(times[key]), 3), *(round(value, 4) for value in ratios(times, base)[key])]


def table(metrics: Mapping[str, Any]) -> str:
    """The content of ``metrics.json`` as text: what :func:`measure` found, accuracy, and what folding changed."""
    rows = metrics['side_by_side']
    first, own = next(iter(rows)), list(rows)[-1]

    def timed(name: str, what: str) -> str:
        value = rows[name][what]
        if isinstance(value, str):
            return value
        return f'{value[0]:.3g} ms' if name == first else f'{value[1]:.2f} ({value[2]:.2f}-{value[3]:.2f})'

    lines = [['', *rows]]
    lines += [[label, *(timed(name, what) for name in rows)] for label, what in (
        ('training step', 'train'), ('inference, as trained', 'infer'), ('inference form', 'infer_folded'))]
    lines += [[label, *(f'{row[key]:,}' for row in rows.values())] for label, key in (
        ('parameters', 'parameters'), ('parameters, inference form', 'parameters_inference'))]
    lines.append([f'top-1 on {metrics["images"]} images, %',
                  *(f'{metrics["top1"]:.2f}' if name == own else 'not trained' for name in rows)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ['  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return '\n'.join([
        text[0], '-' * len(text[0]), *text[1:],
        f'Times are multiples of those of {first}: the median of all rounds, and the quartiles.',
        *(f'{form}: top-1 {metrics[f"top1{key}"]:.2f} %, '
          f'largest logit difference {metrics[f"logit_difference{end}"]:.1e}.' for form, key, end in (
              ('Folded', '_folded', ''), ('Inference form', '_inference', '_inference')) if f'top1{key}' in metrics)])
