"""Curves of runs, and the vectors that one learned."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..asr.wrapper import ASR
from .style import new, save, styled


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(int(row['epoch']), float(row[name])) for row in rows if row.get(name)]
    return [x for x, _ in points], [y for _, y in points]


@styled
def plot_curve(
        rows: Sequence[Mapping[str, Any]], path: str | Path,
        metrics: Mapping[str, str] = {'eval_top1': 'top-1', 'eval_top5': 'top-5'}, unit: str = 'correct, %') -> None:
    """Loss and metrics (column -> name in the figure) of one run by epoch, from the rows of its ``summary.csv``."""
    figure, ((losses, accuracies),) = new(1, 2, 2.8)
    for axes, names in ((losses, {'train_loss': 'training', 'eval_loss': 'validation'}), (accuracies, metrics)):
        for name, label in names.items():
            x, y = _column(rows, name)
            if x:
                axes.plot(x, y, marker='.', label=label)
        axes.set_xlabel('epoch')
        axes.locator_params(axis='x', integer=True)
        if axes.lines:
            axes.legend()
    losses.set(ylabel='loss', title='Loss')
    accuracies.set(ylabel=unit, title='Validation')
    save(figure, path, caption=(
        'Training loss is the mean over an epoch in which the weights still move, with augmentation, label smoothing '
        'and dropout where they are on; validation has none of these, so its loss may lie below.'))


@styled
def plot_curves(
        runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, title: str = '', caption: str = '') -> None:
    """Several runs, each the rows of a ``summary.csv``, in one figure (DIA paper, Figure 10): losses and accuracy."""
    wanted = {'train_loss': 'training loss', 'eval_loss': 'validation loss', 'eval_top1': 'validation top-1, %'}
    shown = {key: label for key, label in wanted.items() if any(_column(rows, key)[0] for rows in runs.values())}
    figure, (panels,) = new(1, len(shown), 3.0)
    for axes, (key, label) in zip(panels, shown.items(), strict=True):
        for name, rows in runs.items():
            axes.plot(*_column(rows, key), label=name)
        axes.set(xlabel='epoch', ylabel=label)
        axes.locator_params(axis='x', integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside upper center', ncols=min(4, len(runs)))
    save(figure, path, title, caption)


@styled
def plot_attention(model: nn.Module, path: str | Path) -> None:
    """One panel a site: the value that the vector gives each channel, in the order of the channels."""
    vectors = {name: module.attention_vector().detach().float().cpu()
               for name, module in model.named_modules() if isinstance(module, ASR)}
    columns, height = (min(3, len(vectors)), 1.7) if len(vectors) <= 24 else (6, 1.4)
    rows = math.ceil(len(vectors) / columns)
    figure, panels = new(rows, columns, height, 2.8 * columns, sharey=True)
    for axes in panels.flat[len(vectors):]:
        axes.set_visible(False)
    for position, (axes, (name, vector)) in enumerate(zip(panels.flat, vectors.items(), strict=False)):
        axes.bar(range(len(vector)), vector.tolist(), width=1.0)
        axes.axhline(vector.mean(), color='tab:orange')
        axes.set_title(f'{name}: mean {vector.mean():.3f}')
        axes.set_xlim(-0.5, len(vector) - 0.5)
        if position % columns == 0:
            axes.set_ylabel('attention')
        if position + columns >= len(vectors):
            axes.set_xlabel('channel')
    save(figure, path, 'Learned attention vectors (orange: mean); folding multiplies each channel by its value')
