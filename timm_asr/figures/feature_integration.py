"""Which earlier blocks the attention of a block depends on: the DIA paper's Figure 7."""

from collections.abc import Mapping
from pathlib import Path

import torch

from .style import WIDTH, new, save, styled


@styled
def plot_feature_integration(
        maps: Mapping[str, torch.Tensor], path: str | Path, title: str = '', caption: str = '') -> None:
    """Heat maps of all stages side by side: of each what :func:`~timm_asr.analysis.feature_integration` gives."""
    from matplotlib.ticker import MaxNLocator

    figure, (panels,) = new(1, len(maps), WIDTH / max(len(maps), 2))
    for axes, (name, importance) in zip(panels, maps.items(), strict=True):
        blocks = len(importance)
        # The first block has no sources and the last is none: rows 2 to N, columns 1 to N - 1.
        image = axes.imshow(importance[1:, :-1].numpy(), vmin=0, vmax=1, extent=(0.5, blocks - 0.5, blocks + 0.5, 1.5))
        axes.grid(False)
        axes.set(title=name, xlabel='source block', ylabel='target block')
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=list(panels), label='importance', shrink=0.8)
    save(figure, path, title, caption)
