"""Plots of a run, by matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from ..asr.vector import ASR


def plot_curve(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Loss and accuracy by epoch, from the rows of ``summary.csv``."""
    def column(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row['epoch']), float(row[name])) for row in rows if row.get(name)]
        return [x for x, _ in points], [y for _, y in points]

    figure = Figure(figsize=(10, 4), layout='constrained')
    losses, accuracies = figure.subplots(1, 2)
    for name, label in (('train_loss', 'training'), ('eval_loss', 'validation')):
        x, y = column(name)
        if x:
            losses.plot(x, y, marker='.', label=label)
    losses.set(xlabel='epoch', ylabel='loss', title='Loss')
    losses.legend()
    for name, label in (('eval_top1', 'top-1'), ('eval_top5', 'top-5')):
        x, y = column(name)
        if x:
            accuracies.plot(x, y, marker='.', label=label)
    accuracies.set(xlabel='epoch', ylabel='correct, %', title='Validation accuracy')
    if accuracies.lines:
        accuracies.legend(loc='lower right')
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_attention(model: nn.Module, path: Path) -> None:
    """One panel a block: the learned attention value of each channel, sorted by channel index."""
    vectors = {name: module.attention_vector().detach().float().cpu()
               for name, module in model.named_modules() if isinstance(module, ASR)}
    columns, height = (min(3, len(vectors)), 2.1) if len(vectors) <= 24 else (6, 1.5)
    rows = math.ceil(len(vectors) / columns)
    everything = torch.cat(list(vectors.values()))
    top = 1.05 * max(everything.max().item(), 1e-3)
    figure = Figure(figsize=(4.2 * columns, height * rows + 0.8), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(vectors):]:
        axes.set_visible(False)
    for position, (axes, (name, vector)) in enumerate(zip(panels.flat, vectors.items(), strict=False)):
        axes.bar(range(len(vector)), vector.tolist(), width=1.0, color='tab:blue')
        axes.axhline(vector.mean(), color='tab:orange', linewidth=1)
        axes.set_title(f'{name}  ({len(vector)} channels, mean {vector.mean():.3f})', fontsize=9)
        axes.set_ylim(min(0.0, everything.min().item()), top)
        axes.set_xlim(-0.5, len(vector) - 0.5)
        axes.tick_params(labelsize=8)
        if position % columns == 0:
            axes.set_ylabel('attention', fontsize=9)
        if position + columns >= len(vectors):
            axes.set_xlabel('channel', fontsize=9)
    figure.suptitle('Learned attention vectors (orange: mean); fusing multiplies each channel by its value')
    figure.savefig(path, dpi=110)
