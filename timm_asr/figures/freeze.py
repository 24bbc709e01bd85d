"""How constant the gates of a network are, as the ASR paper's Figure 1b."""

from collections.abc import Sequence
from pathlib import Path

from ..freeze.report import GateReport


def plot_gates(gates: Sequence[GateReport], path: str | Path, title: str = '') -> None:
    """Write two rows of boxes, one box a gate: deviations over images, and means, of its channels.

    A box reaches from quartile to quartile with the median inside, its whiskers over all channels; the dot is the
    mean over channels. Gates that were left are grey.

    Args:
        gates: As :class:`~timm_asr.freeze.FreezeReport` has them.
        path: Of the image; its ending names the format.
        title: Above the panels.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Plots need matplotlib: pip install 'timm-asr[plot]'.") from None
    figure = Figure(figsize=(max(5.0, 0.32 * len(gates) + 1.6), 6.4), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True)
    ticks = list(range(1, len(gates) + 1))
    colors = ['tab:blue' if gate.frozen else 'tab:gray' for gate in gates]
    for axes, values in ((upper, [gate.std for gate in gates]), (lower, [gate.mean for gate in gates])):
        boxes = axes.boxplot(
            [v.tolist() for v in values],
            positions=ticks,
            widths=0.6,
            whis=(0, 100),
            patch_artist=True,
            medianprops={'color': 'black'},
        )
        for box, color in zip(boxes['boxes'], colors, strict=True):
            box.set(facecolor=color, alpha=0.5)
        axes.plot(ticks, [v.mean().item() for v in values], 'o', color='tab:orange', markersize=4)
        axes.grid(axis='y', alpha=0.3)
    upper.set_ylabel('deviation over images')
    upper.set_ylim(bottom=0)
    lower.set_ylabel('mean weight')
    lower.set_xticks(ticks, [gate.name for gate in gates], rotation=90, fontsize=8)
    figure.suptitle(title or 'Channel weights of each gate')
    figure.savefig(path, dpi=120)
