"""Distributions of gradients (DIA paper, Figure 9)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..analysis.gradients import DECADES, StageGradients
from .style import new, save, styled


@styled
def plot_gradients(
        models: Mapping[str, Sequence[StageGradients]], path: str | Path, title: str = '', caption: str = '') -> None:
    """One panel a stage, one line a (labelled) model: the density of log10 |g|; dashed is the mean of |g|."""
    stages = max((len(found) for found in models.values()), default=0)
    figure, (panels,) = new(1, stages, 2.8, sharey=True)
    low, high = DECADES
    for index, axes in enumerate(panels):
        ends = []
        for color, (label, found) in enumerate(models.items()):
            if index >= len(found):
                continue
            counts = found[index].counts
            centres = torch.linspace(low, high, len(counts) + 1)[:-1] + (high - low) / len(counts) / 2
            density = counts / counts.sum() * len(counts) / (high - low)
            axes.plot(centres.tolist(), density.tolist(), color=f'C{color}', label=label)
            axes.axvline(torch.tensor(found[index].mean).clamp_min(10 ** low).log10().item(), color=f'C{color}',
                         linestyle='--', linewidth=0.8)
            shown = centres[density > 0.01 * density.max()]
            ends += [shown.min().item(), shown.max().item()]
        axes.set(title=next(found[index].stage for found in models.values() if index < len(found)),
                 xlabel='log10 |gradient|', xlim=(min(ends) - 0.2, max(ends) + 0.2))
    panels[0].set_ylabel('density')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside upper center', ncols=min(4, len(models)))
    save(figure, path, title, caption)
