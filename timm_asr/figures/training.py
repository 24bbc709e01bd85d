"""Curves of runs, speed against accuracy, arms of experiments, and the vectors that a run learned."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..asr.wrapper import ASR
from .style import legend_above, new, save, styled


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
            if any(row.get(name) for row in rows):
                axes.plot(*_column(rows, name), marker='.', label=label)
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
            axes.plot(*_column(rows, key), label=name, marker='.')
        axes.set(xlabel='epoch', ylabel=label)
        axes.locator_params(axis='x', integer=True)
    legend_above(figure, panels[0])
    save(figure, path, title, caption)


@styled
def plot_speed(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = '', caption: str = '') -> None:
    """A point a model: images per second to the right, accuracy upwards, its area that of the parameters (ASR Fig. 3).

    ``rows`` have ``model``, ``images_per_second``, ``parameters`` and ``top1``; those that lack one are left out.
    """
    keys = ('images_per_second', 'parameters', 'top1')
    rows = [row for row in rows if all(row.get(key) is not None for key in keys)]
    figure, ((axes,),) = new(1, 1, 3.8)
    largest = max(float(row['parameters']) for row in rows)
    for index, row in enumerate(rows):
        speed, parameters, top1 = (float(row[key]) for key in keys)
        area = 400 * parameters / largest
        axes.scatter(speed, top1, area, color=f'C{index % 10}', alpha=0.5)
        axes.annotate(f'{row["model"]}\n{parameters / 1e6:.3g} M', (speed, top1), fontsize=7, ha='center', va='bottom',
                      xytext=(0, 2 + (area / math.pi) ** 0.5), textcoords='offset points')
    axes.set(xlabel='images per second', ylabel='top-1, %')
    axes.margins(x=0.2, y=0.25)
    axes.grid(True, axis='both')
    save(figure, path, title, caption)


@styled
def plot_arms(title: str, values: Mapping[str, Sequence[float]], path: Path, caption: str = '') -> None:
    """Draw top-1 (percent) of every run, a row an arm, with the mean of the arm and its standard error."""
    shown = {name: np.array(runs) for name, runs in values.items() if len(runs)}
    figure, ((axes,),) = new(height=0.8 + 0.35 * len(shown))
    for row, runs in enumerate(shown.values()):
        axes.plot(runs, np.full(len(runs), row), 'o', color='tab:blue', alpha=0.4, markersize=5)
        error = runs.std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else 0
        axes.errorbar(runs.mean(), row, xerr=error, fmt='|', color='black', markersize=14, capsize=3)
    axes.set_yticks(range(len(shown)), [f'{name} ({len(runs)})' for name, runs in shown.items()])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel('top-1 of the last epoch, % (bar: mean ± standard error)')
    save(figure, path, title, caption)


@styled
def plot_attention(model: nn.Module, path: str | Path) -> None:
    """One panel a site: the value that the vector gives each channel, in the order of the channels."""
    vectors = {name: module.attention_vector().detach().float().cpu()
               for name, module in model.named_modules() if isinstance(module, ASR)}
    columns, height = (min(3, len(vectors)), 1.7) if len(vectors) <= 24 else (6, 1.4)
    figure, panels = new(math.ceil(len(vectors) / columns), columns, height, 2.8 * columns, sharey=True)
    for axes in panels.flat[len(vectors):]:
        axes.set_visible(False)
    for position, (axes, (name, vector)) in enumerate(zip(panels.flat, vectors.items(), strict=False)):
        axes.bar(range(len(vector)), vector.tolist(), width=1.0)
        axes.axhline(vector.mean(), color='tab:orange')
        axes.set(title=f'{name}: mean {vector.mean():.3f}', xlim=(-0.5, len(vector) - 0.5),
                 ylabel='' if position % columns else 'attention',
                 xlabel='channel' if position + columns >= len(vectors) else '')
        axes.locator_params(axis='x', integer=True)
    save(figure, path, 'Learned attention vectors (orange: mean); folding multiplies each channel by its value')
