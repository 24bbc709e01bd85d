"""What all figures share: sizes that are legible at the width of a page."""

import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

WIDTH, DPI = 7.2, 150  # inches of a page; pixels an inch
_RC = {
    'font.size': 9, 'axes.titlesize': 9, 'axes.labelsize': 9, 'xtick.labelsize': 8, 'ytick.labelsize': 8,
    'legend.fontsize': 8, 'figure.titlesize': 10, 'axes.grid': True, 'axes.grid.axis': 'y', 'grid.alpha': 0.3,
    'axes.axisbelow': True, 'axes.spines.top': False, 'axes.spines.right': False, 'image.interpolation': 'nearest',
    'lines.linewidth': 1.5}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function draw in the style of this package, or say what to install where matplotlib is missing."""
    @wraps(draw)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            import matplotlib
        except ImportError:
            raise ImportError("Figures need matplotlib: pip install matplotlib.") from None
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return run


def new(rows: int = 1, columns: int = 1, height: float = 2.4, width: float = WIDTH, **kwargs: Any) -> tuple[Any, Any]:
    """A figure and its panels, an array (rows, columns); ``height`` is that of one row in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def legend_above(figure: Any, axes: Any) -> None:
    """The names of the lines in one panel above all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=min(4, len(labels)))


def save(figure: Any, path: str | Path, title: str = '', caption: str = '') -> None:
    """Write a figure with its title above and its caption, such as the command that made it, small below."""
    if title:
        figure.suptitle(title)
    if caption:
        columns = int(figure.get_size_inches()[0] * 15)
        figure.supxlabel('\n'.join(textwrap.wrap(caption, columns, break_long_words=True)), fontsize=6.5,
                         family='monospace', color='0.4')
    figure.savefig(path, dpi=DPI)
