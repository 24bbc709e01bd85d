"""Channel gates: heat maps, deviations, differences over epochs (ASR paper, Figure 1), and what freezing did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..analysis.stripes import StripeReport
from ..freeze.report import GateReport
from .style import new, save, styled


def _chosen(names: Sequence[str], gates: int | Sequence[str]) -> list[str]:
    """The gates of these names, or so many, from the first to the last at equal distances."""
    if not isinstance(gates, int):
        unknown = [name for name in gates if name not in names]
        if unknown:
            raise ValueError(f'There is no gate {unknown[0]!r} to draw; there are {", ".join(names)}.')
        return list(gates)
    count = min(gates, len(names))
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]


@styled
def plot_stripes(
        report: StripeReport, path: str | Path, title: str = '', caption: str = '', gates: int | Sequence[str] = 4,
) -> None:
    """Heat maps images x channels, one row a gate: the pooled feature before it, and its weights (Figure 1a).

    Args:
        report: Of :func:`timm_asr.analysis.measure_stripes`, with ``keep`` images or more.
        gates: Names of gates, or how many, spread over the depth of the network. Of wide ones the first 128 channels
            are drawn.
    """
    by_name = {gate.name: gate for gate in report.gates}
    names = _chosen(list(by_name), gates)
    figure, panels = new(len(names), 2, 1.7)
    for row, name in zip(panels, names, strict=True):
        gate = by_name[name]
        for axes, values, what, score in (
                (row[0], gate.kept[0], 'before', gate.pooled.stripe_score),
                (row[1], gate.kept[1], 'weights', gate.weights.stripe_score)):
            low, high = (torch.quantile(values.flatten()[:1_000_000], q).item() for q in (0.01, 0.99))
            image = axes.imshow(values[:, :128].numpy(), aspect='auto', cmap='viridis', vmin=low, vmax=high)
            axes.grid(False)
            axes.set(title=f'{name}, {what} (score {score:.2f})', ylabel='image' if what == 'before' else '')
            figure.colorbar(image, ax=axes, pad=0.02)
    for axes in panels[-1]:
        axes.set_xlabel('channel')
    save(figure, path, title, caption)


@styled
def plot_deviations(report: StripeReport, path: str | Path, title: str = '', caption: str = '') -> None:
    """Of each gate, how the deviations over images are spread over its channels, before and after (Figure 1b).

    A box reaches from quartile to quartile, its whiskers over all channels. The scale is logarithmic; what is below
    0.0001 is drawn there.
    """
    figure, ((axes,),) = new(1, 1, 3.4)
    ticks = range(len(report.gates))
    for offset, color, label, stds in (
            (-0.2, 'tab:orange', 'pooled feature before', [gate.pooled.std for gate in report.gates]),
            (0.2, 'tab:blue', 'weights', [gate.weights.std for gate in report.gates])):
        _boxes(axes, [std.clamp_min(1e-4) for std in stds], [i + offset for i in ticks], [color] * len(stds))
        axes.plot([], [], color=color, linewidth=6, alpha=0.6, label=label)
    axes.set(yscale='log', ylabel='deviation over images', ylim=(0.9e-4, None))
    figure.legend(loc='outside upper right', ncols=2)
    _name_ticks(axes, list(ticks), [gate.name for gate in report.gates])
    save(figure, path, title, caption)


@styled
def plot_differences(
        differences: Mapping[str, torch.Tensor], path: str | Path, title: str = '', caption: str = '',
        gates: int | Sequence[str] = 4) -> None:
    """How much the weights of fixed images still change from epoch to epoch (Figure 1c): black is not at all.

    ``differences`` are those of :func:`timm_asr.analysis.stripe_differences`. A row is a gate, by name, or so many
    spread over the depth; three images side by side, twenty channels of each at equal distances.
    """
    names = _chosen(list(differences), gates)
    images = min(3, differences[names[0]].shape[1])
    figure, panels = new(len(names), images, 1.6, sharex=True)
    for row, name in zip(panels, names, strict=True):
        values = differences[name]
        chosen = torch.linspace(0, values.shape[2] - 1, min(20, values.shape[2])).long()
        high = torch.quantile(values[:, :images, chosen].flatten(), 0.99).item()
        for index, axes in enumerate(row):
            image = axes.imshow(
                values[:, index, chosen].T.numpy(), aspect='auto', cmap='inferno', vmin=0, vmax=high or 1,
                origin='lower', extent=(0.5, len(values) + 0.5, -0.5, len(chosen) - 0.5))
            axes.grid(False)
            axes.set(title=f'{name}, image {index + 1}', ylabel='channel' if index == 0 else '')
        figure.colorbar(image, ax=list(row), pad=0.02)
    for axes in panels[-1]:
        axes.set_xlabel('checkpoint')
        axes.locator_params(axis='x', integer=True)
    save(figure, path, title, caption)


@styled
def plot_frozen(gates: Sequence[GateReport], path: str | Path, title: str = '', caption: str = '') -> None:
    """Of each gate, deviations over images and means of its channels; gates that were left are grey."""
    figure, ((upper,), (lower,)) = new(2, 1, 2.6, sharex=True)
    colors = ['tab:blue' if gate.frozen else 'tab:gray' for gate in gates]
    ticks = list(range(len(gates)))
    for axes, values in ((upper, [gate.std for gate in gates]), (lower, [gate.mean for gate in gates])):
        _boxes(axes, values, ticks, colors, 0.6)
        axes.plot(ticks, [v.mean().item() for v in values], 'o', color='tab:orange', markersize=3)
    upper.set(ylabel='deviation over images', ylim=(0, None))
    lower.set_ylabel('mean weight')
    _name_ticks(lower, ticks, [gate.name for gate in gates])
    save(figure, path, title or 'Channel weights of each gate', caption)


def _boxes(axes: Any, values: list, positions: Sequence[float], colors: Sequence[str], width: float = 0.35) -> None:
    boxes = axes.boxplot(
        [v.tolist() for v in values], positions=positions, widths=width, whis=(0, 100), patch_artist=True,
        medianprops={'color': 'black'}, manage_ticks=False)
    for box, color in zip(boxes['boxes'], colors, strict=True):
        box.set(facecolor=color, alpha=0.6)


def _name_ticks(axes: Any, ticks: list[int], names: list[str]) -> None:
    axes.set_xticks(ticks, names, rotation=90, fontsize=7 if len(names) <= 40 else 5)
    axes.set_xlim(-0.7, len(ticks) - 0.3)
