"""Speed against accuracy (ASR paper, Figure 3)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .style import new, save, styled


@styled
def plot_speed(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = '', caption: str = '') -> None:
    """A point a model: images per second to the right, accuracy upwards, its area that of the parameters.

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
