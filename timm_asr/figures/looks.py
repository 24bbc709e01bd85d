"""Sheets of Grad-CAM: images in rows, models in columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..analysis.gradcam import AverageLook
from .style import WIDTH, new, save, styled


@styled
def plot_looks(
        images: torch.Tensor, looks: Mapping[str, tuple[torch.Tensor, torch.Tensor]], path: str | Path, title: str = '',
        caption: str = '', names: Sequence[str] = (),
        average: tuple[torch.Tensor, Mapping[str, AverageLook]] | None = None) -> None:
    """The images, and beside them where each model looks, with the softmax score of the target above.

    Args:
        images: (B, 3 or 1, H, W) from 0 to 1.
        looks: Label of a model -> its maps (B, H, W) and scores (B,), as :func:`timm_asr.analysis.gradcam.grad_cam`
            gives them.
        names: Of the targets, beside the images.
        average: Mean image (3 or 1, H, W), and the average look of each model: one more row at the end.
    """
    rows, columns = len(images) + (average is not None), 1 + len(looks)
    side = min(1.6, WIDTH / columns)
    figure, panels = new(rows, columns, side + 0.18, max(side * columns, 4.0))
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    for index, image in enumerate(images):
        _show(panels[index, 0], image)
        panels[index, 0].set_ylabel(names[index] if names else '')
        for axes, (maps, scores) in zip(panels[index, 1:], looks.values(), strict=True):
            _show(axes, image, maps[index])
            axes.set_title(f'{scores[index]:.2f}', fontsize=8)
    if average is not None:
        mean, found = average
        _show(panels[-1, 0], mean)
        count = next(iter(found.values())).images
        panels[-1, 0].set_ylabel(f'mean of {count}')
        for axes, look in zip(panels[-1, 1:], found.values(), strict=True):
            _show(axes, mean, look.map)
            axes.set_title(f'{look.score:.2f}', fontsize=8)
    for axes, label in zip(panels[0, 1:], looks, strict=True):
        axes.set_title(f'{label}\n{axes.get_title()}', fontsize=8)
    save(figure, path, title, caption)


def _show(axes: object, image: torch.Tensor, look: torch.Tensor | None = None) -> None:
    grey = image.shape[0] == 1
    picture = image[0] if grey else image.permute(1, 2, 0)
    axes.imshow(picture.clamp(0, 1).cpu().numpy(), cmap='gray', vmin=0, vmax=1)  # type: ignore[attr-defined]
    if look is not None:
        axes.imshow(look.numpy(), cmap='inferno', alpha=0.6, vmin=0, vmax=1)  # type: ignore[attr-defined]
