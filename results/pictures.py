"""Draw the pictures of the README and of the methods' pages: ``python results/pictures.py`` writes `docs/images/`.

The bars of the README come from `speed.csv`, which `speed.py` measured; the other pictures are drawings.
"""

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from timm_asr.figures.style import new, save, styled

HERE = Path(__file__).parent
IMAGES = HERE.parent / 'docs' / 'images'
LAYER, GATE, LEARNED, PLAIN = '#dbe7f3', '#fbe3c8', '#d9efd9', '#ffffff'


def canvas(axes: Axes, width: float, height: float, title: str = '') -> None:
    axes.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    axes.axis('off')
    axes.set_title(title, loc='left')


def box(axes: Axes, x: float, y: float, text: str, color: str = LAYER, width: float = 1.5, height: float = 0.7) -> None:
    """A box with its centre at (x, y)."""
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=color, edgecolor='#555555',
                                  linewidth=0.8, boxstyle='round,pad=0,rounding_size=0.12'))
    axes.text(x, y, text, ha='center', va='center', fontsize=8)


def node(axes: Axes, x: float, y: float, text: str) -> None:
    """An operator in a circle."""
    axes.text(x, y, text, ha='center', va='center', fontsize=9,
              bbox={'boxstyle': 'circle,pad=0.15', 'facecolor': 'white', 'edgecolor': '#555555', 'linewidth': 0.8})


def line(axes: Axes, *points: Sequence[float], text: str = '', color: str = '#333333') -> None:
    """A line through points that ends in an arrow; the text stands above its first stretch."""
    for start, stop in pairwise(points[:-1]):
        axes.plot(*zip(start, stop, strict=True), color=color, linewidth=0.9, solid_capstyle='round')
    axes.annotate('', points[-1], points[-2], arrowprops={'arrowstyle': '-|>', 'color': color, 'linewidth': 0.9,
                                                         'shrinkA': 0, 'shrinkB': 0, 'mutation_scale': 8})
    if text:
        (x0, y0), (x1, y1) = points[:2]
        axes.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.1, text, ha='center', va='bottom', fontsize=8, color=color)


def branch(axes: Axes, y: float, last: str, color: str = LAYER) -> None:
    """The end of a residual branch: a convolution, a norm, and the addition of the shortcut."""
    line(axes, (0.1, y), (0.75, y))
    box(axes, 1.5, y, 'conv')
    line(axes, (2.25, y), (2.95, y))
    box(axes, 4.2, y, last, color, width=2.5)
    node(axes, 7.5, y, '+')
    line(axes, (0.4, y), (0.4, y - 0.75), (7.5, y - 0.75), (7.5, y - 0.27))
    line(axes, (7.77, y), (8.2, y))
    line(axes, (5.45, y), (7.23, y))


def measured() -> dict[tuple[str, str], dict[str, str]]:
    """Rows of `speed.csv` of ResNet-164 by what was timed and the variant."""
    rows = csv.DictReader((HERE / 'speed.csv').read_text().splitlines())
    return {(f'{row["what"]} {row["batch_size"]}', row['variant']): row
            for row in rows if row['backbone'] == 'resnet164'}


@styled
def overview(path: Path) -> None:
    """What ASR is, and what it costs beside SE."""
    figure, panels = new(1, 2, height=3.0, width=9.0, width_ratios=(1.25, 1))
    axes, bars = panels[0]
    canvas(axes, 8.4, 6.9, 'One residual branch, in three forms')
    for y, label, last, color in (
            (4.9, 'SE: pool the feature map, weigh, multiply', 'BN(x; γ, β)', LAYER),
            (2.9, 'ASR while training: v = gate(ψ), the same for all images', 'BN(x; γ·v, β·v)', LEARNED),
            (0.9, 'ASR folded: the stock network', "BN(x; γ', β')", LAYER)):
        axes.text(0.1, y + (0.5 if y < 4 else 1.15), label, fontsize=8, va='bottom', fontweight='bold')
        branch(axes, y, last, color)
    box(axes, 6.2, 5.6, 'gate', GATE, width=1.6, height=0.5)
    node(axes, 6.8, 4.9, '×')
    line(axes, (5.6, 4.9), (5.6, 5.35))
    line(axes, (6.8, 5.35), (6.8, 5.17))
    rows = measured()
    groups = ['training step,\ntime', 'training step,\nmemory', 'one image,\ntime', '128 images,\ntime']
    keys = [('training step 64', 'time_ratio'), ('training step 64', 'saved_ratio'), ('inference 1', 'time_ratio'),
            ('inference 128', 'time_ratio')]
    for offset, name, color, variants in ((-0.2, 'SE', '#d98c3f', ('SE', 'SE')),
                                          (0.2, 'ASR(SE)', '#4f8f4f', ('ASR(SE), weight space', 'ASR(SE), folded'))):
        values = [float(rows[what, variants[what.startswith('inference')]][key]) for what, key in keys]
        drawn = bars.bar([i + offset for i in range(4)], values, 0.38, color=color, label=name)
        bars.bar_label(drawn, [f'{value:.2f}' for value in values], fontsize=8, padding=2)
    bars.axhline(1, color='black', linewidth=0.8, linestyle=':')
    bars.text(3.45, 1.02, 'plain', fontsize=8, va='bottom', ha='left')
    bars.set(ylim=(0, 1.6), xticks=range(4), xticklabels=groups, ylabel='times the plain network')
    bars.set_title('ResNet-164 at 32x32, two CPU cores', loc='left')
    bars.legend(loc='upper right', frameon=False, ncols=2)
    save(figure, path)


@styled
def asr(path: Path) -> None:
    """ASR at one site: vector, gate, scaled norm; and what is left."""
    figure, ((left, right),) = new(1, 2, height=2.2, width=9.0, width_ratios=(1.3, 1))
    canvas(left, 8.4, 4.0, 'While training')
    branch(left, 1.4, 'BN(x; γ·v, β·v)', LEARNED)
    box(left, 1.5, 3.2, 'ψ, a learned vector', LEARNED, width=2.6)
    line(left, (2.8, 3.2), (3.45, 3.2))
    box(left, 4.2, 3.2, 'gate', GATE)
    line(left, (4.2, 2.85), (4.2, 1.75))
    left.text(4.35, 2.3, 'v, one weight a channel', fontsize=8, va='center')
    canvas(right, 8.4, 4.0, 'Folded')
    branch(right, 1.4, "BN(x; γ', β')")
    right.text(4.2, 2.3, "γ' = γ·v,  β' = β·v", fontsize=8, ha='center')
    save(figure, path)


def stage(axes: Axes, blocks: int, y: float = 1.2) -> list[float]:
    """Blocks in a row; returns where the multiplication of each stands."""
    places = []
    for i in range(blocks):
        x = 0.3 + 4.2 * i
        line(axes, (x - 0.2, y), (x + 0.35, y))
        box(axes, x + 1.1, y, f'block {i + 1}')
        line(axes, (x + 1.85, y), (x + 2.63, y))
        node(axes, x + 2.9, y, '×')
        line(axes, (x + 3.17, y), (x + 3.43, y))
        node(axes, x + 3.7, y, '+')
        line(axes, (x, y), (x, y - 0.75), (x + 3.7, y - 0.75), (x + 3.7, y - 0.27))
        places.append(x + 2.9)
    line(axes, (x + 3.97, y), (x + 4.5, y))
    return places


@styled
def dia(path: Path) -> None:
    """One unit for all blocks of a stage; the LSTM's state goes from block to block."""
    figure, panels = new(2, 1, height=1.9, width=9.0)
    for axes, title in ((panels[0, 0], 'DIA: the blocks of a stage share one unit'),
                        (panels[1, 0], 'DIA-LSTM: the unit also remembers the blocks before')):
        canvas(axes, 13.2, 3.6, title)
        places = stage(axes, 3)
        lstm = 'LSTM' in title
        if not lstm:
            box(axes, 6.7, 2.9, 'unit, one set of parameters', GATE, width=12.4, height=0.6)
        for i, x in enumerate(places):
            if lstm:
                box(axes, x - 0.35, 2.9, 'LSTM', GATE, width=1.3, height=0.6)
                line(axes, (x + 0.3, 2.9), (x + 3.2 if i < 2 else x + 1.1, 2.9), text='h, c' if i < 2 else '')
            line(axes, (x - 0.7, 1.2), (x - 0.7, 2.6))
            line(axes, (x, 2.6), (x, 1.47))
    save(figure, path)


@styled
def spe(path: Path) -> None:
    """Pooling, excitation and reweighting of SPE."""
    figure, ((axes,),) = new(1, 1, height=2.6, width=9.0)
    canvas(axes, 14.6, 4.2)
    box(axes, 0.9, 2.1, 'feature\nmap', width=1.3, height=1.0)
    line(axes, (1.55, 2.1), (1.9, 2.1), (1.9, 3.2), (2.25, 3.2))
    line(axes, (1.9, 2.1), (1.9, 1.0), (2.25, 1.0))
    box(axes, 2.95, 3.2, 'max', width=1.4)
    box(axes, 2.95, 1.0, 'min', width=1.4)
    box(axes, 6.0, 3.2, 'λ·max + (1-λ)·min', LEARNED, width=2.8)
    line(axes, (3.65, 3.2), (4.6, 3.2))
    line(axes, (3.95, 0.85), (3.95, 3.0), (4.6, 3.0))
    line(axes, (7.4, 3.2), (8.0, 3.2))
    box(axes, 9.3, 3.2, 'σ(w·u + b)', GATE, width=2.6)
    box(axes, 9.3, 1.0, "σ(w'·(max + min) + b')", GATE, width=3.4)
    line(axes, (4.25, 3.2), (4.25, 1.15), (7.6, 1.15))
    line(axes, (3.65, 0.85), (7.6, 0.85))
    axes.text(9.3, 3.75, 'excitation', ha='center', fontsize=8)
    axes.text(9.3, 0.3, 'reweighting', ha='center', fontsize=8)
    node(axes, 12.2, 2.1, '×')
    line(axes, (10.6, 3.2), (12.2, 3.2), (12.2, 2.37))
    line(axes, (11.0, 1.0), (12.2, 1.0), (12.2, 1.83))
    line(axes, (12.5, 2.1), (14.3, 2.1), text='channel weights')
    save(figure, path)


@styled
def ras(path: Path) -> None:
    """A gate applied twice with itself, and its inference form."""
    figure, panels = new(2, 1, height=1.3, width=9.0)
    canvas(panels[0, 0], 14.6, 1.9, 'While training: one gate, k times (here k = 2)')
    canvas(panels[1, 0], 14.6, 1.9, 'Inference form: one scale and shift')
    first, second = panels[:, 0]
    for axes in (first, second):
        line(axes, (0.0, 0.9), (0.5, 0.9))
        box(axes, 1.1, 0.9, 'pool', width=1.2)
    line(first, (1.7, 0.9), (2.4, 0.9), text='u')
    box(first, 3.5, 0.9, 'w·u + b', GATE, width=2.2)
    line(first, (4.6, 0.9), (5.2, 0.9))
    box(first, 5.9, 0.9, 'BN', width=1.4)
    line(first, (6.6, 0.9), (7.2, 0.9))
    box(first, 8.3, 0.9, 'w·u + b', GATE, width=2.2)
    line(first, (9.4, 0.9), (10.2, 0.9))
    box(first, 10.8, 0.9, 'σ', GATE, width=1.2)
    line(first, (11.4, 0.9), (14.3, 0.9), text='channel weights')
    line(second, (1.7, 0.9), (4.7, 0.9), text='u')
    box(second, 5.9, 0.9, 'A·u + B', GATE, width=2.4)
    line(second, (7.1, 0.9), (10.2, 0.9))
    box(second, 10.8, 0.9, 'σ', GATE, width=1.2)
    line(second, (11.4, 0.9), (14.3, 0.9), text='channel weights')
    save(figure, path)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for draw in (overview, asr, dia, spe, ras):
        draw(IMAGES / f'{draw.__name__}.png')
        print(IMAGES / f'{draw.__name__}.png')


if __name__ == '__main__':
    main()
