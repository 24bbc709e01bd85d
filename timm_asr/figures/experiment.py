"""The arms of an experiment: a dot a run, and the mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .style import new, save, styled


@styled
def plot_arms(title: str, values: Mapping[str, Sequence[float]], path: Path, caption: str) -> None:
    """Draw top-1 (percent) of every run, a row an arm, with the mean of the arm and its standard error."""
    shown = {name: np.array(runs) for name, runs in values.items() if len(runs)}
    figure, panels = new(height=0.8 + 0.35 * len(shown))
    axes = panels[0, 0]
    for row, runs in enumerate(shown.values()):
        axes.plot(runs, np.full(len(runs), row), 'o', color='tab:blue', alpha=0.4, markersize=5)
        error = runs.std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else 0
        axes.errorbar(runs.mean(), row, xerr=error, fmt='|', color='black', markersize=14, capsize=3)
    axes.set_yticks(range(len(shown)), [f'{name} ({len(runs)})' for name, runs in shown.items()])
    axes.invert_yaxis()
    axes.set_xlabel('top-1 of the last epoch, % (bar: mean ± standard error)')
    save(figure, path, title, caption)
