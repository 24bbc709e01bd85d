"""What commands that look into networks draw: feature integration, gradients, Grad-CAM."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..analysis.gradcam import AverageLook
from ..analysis.gradients import DECADES, StageGradients
from .style import WIDTH, legend_above, new, save, styled


@styled
def plot_feature_integration(
        maps: Mapping[str, torch.Tensor], path: str | Path, title: str = '', caption: str = '') -> None:
    """Heat maps of all stages side by side, each of :func:`~timm_asr.analysis.feature_integration` (DIA, Figure 7)."""
    figure, (panels,) = new(1, len(maps), WIDTH / max(len(maps), 2))
    for axes, (name, importance) in zip(panels, maps.items(), strict=True):
        blocks = len(importance)
        # The first block has no sources and the last is none: rows 2 to N, columns 1 to N - 1.
        image = axes.imshow(importance[1:, :-1].numpy(), vmin=0, vmax=1, extent=(0.5, blocks - 0.5, blocks + 0.5, 1.5))
        axes.grid(False)
        axes.set(title=name, xlabel='source block', ylabel='target block')
        axes.locator_params(integer=True)
    figure.colorbar(image, ax=list(panels), label='importance', shrink=0.8)
    save(figure, path, title, caption)


@styled
def plot_gradients(
        models: Mapping[str, Sequence[StageGradients]], path: str | Path, title: str = '', caption: str = '') -> None:
    """One panel a stage, one line a (labelled) model: the density of log10 |g|; dashed is the mean (DIA, Figure 9)."""
    names = [stage.stage for stage in max(models.values(), key=len)]
    figure, (panels,) = new(1, len(names), 2.8, sharey=True)
    low, high = DECADES
    for index, axes in enumerate(panels):
        ends = []
        for color, (label, found) in enumerate(models.items()):
            if index >= len(found):
                continue
            counts = found[index].counts
            width = (high - low) / len(counts)
            centres = low + width * (torch.arange(len(counts)) + 0.5)
            density = counts / counts.sum() / width
            axes.plot(centres.tolist(), density.tolist(), color=f'C{color}', label=label)
            axes.axvline(torch.tensor(found[index].mean).clamp_min(10 ** low).log10().item(), color=f'C{color}',
                         linestyle='--', linewidth=0.8)
            shown = centres[density > 0.01 * density.max()]
            ends += [shown.min().item(), shown.max().item()]
        axes.set(title=names[index], xlabel='log10 |gradient|', xlim=(min(ends) - 0.2, max(ends) + 0.2))
    panels[0].set_ylabel('density')
    legend_above(figure, panels[0])
    save(figure, path, title, caption)


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
    lines = [(image, names[index] if names else '', [
        (maps[index], float(scores[index])) for maps, scores in looks.values()]) for index, image in enumerate(images)]
    if average is not None:
        mean, found = average
        lines.append((mean, f'mean of {next(iter(found.values())).images}', [
            (look.map, look.score) for look in found.values()]))
    side = min(1.6, WIDTH / (1 + len(looks)))
    figure, panels = new(len(lines), 1 + len(looks), side + 0.18, max(side * (1 + len(looks)), 4.0))
    for row, (image, name, shown) in zip(panels, lines, strict=True):
        picture = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        for axes in row:
            axes.imshow(picture.clamp(0, 1).cpu().numpy(), cmap='gray', vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(name)
        for axes, (look, score) in zip(row[1:], shown, strict=True):
            axes.imshow(look.numpy(), cmap='inferno', alpha=0.6, vmin=0, vmax=1, extent=axes.images[0].get_extent())
            axes.set_title(f'{score:.2f}', fontsize=8)
    for axes, label in zip(panels[0, 1:], looks, strict=True):
        axes.set_title(f'{label}\n{axes.get_title()}', fontsize=8)
    save(figure, path, title, caption)
