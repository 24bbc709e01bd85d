"""Where a network looks: Grad-CAM (ASR paper, Figure 6; DIA paper, Figure 6), by grad-cam (extra ``gradcam``)."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from .images import Images


def stage_names(model: nn.Module) -> list[str]:
    """Modules at whose ends a network of timm has its feature maps, without its stem; needs ``feature_info``."""
    info = getattr(model, 'feature_info', None)
    there = dict(model.named_modules())  # some of timm's names lead nowhere (HRNet)
    names = [entry['module'] for entry in (getattr(info, 'info', info) or [])
             if entry['module'] in there and entry['module'] not in ('stem', 'bn1', 'act1', 'conv1')]
    if not names:
        raise ValueError(f'This {type(model).__name__} has no feature_info that names its stages; name a layer.')
    return names


def look_layer(model: nn.Module) -> str:
    """The layer that Grad-CAM looks at if none is named: the last stage of a network with feature maps.

    Of a transformer it is the first norm of the last block: behind it only the class token reaches the classifier.
    """
    blocks = getattr(model, 'blocks', None)
    if blocks is not None and hasattr(model, 'num_prefix_tokens') and hasattr(blocks[-1], 'norm1'):
        return f'blocks.{len(blocks) - 1}.norm1'
    return stage_names(model)[-1]


def _as_map(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a layer puts out as (B, C, H, W): it may be tokens of a transformer, or channels that come last."""
    if not isinstance(x, torch.Tensor):
        raise ValueError('This layer puts out several maps, not one; name another (--layer).')
    if x.ndim == 3:
        x = x[:, getattr(model, 'num_prefix_tokens', 0):]
        grid = getattr(getattr(model, 'patch_embed', None), 'grid_size', None)
        height, width = grid if grid and grid[0] * grid[1] == x.shape[1] else (round(x.shape[1] ** 0.5),) * 2
        return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return x.permute(0, 3, 1, 2) if str(getattr(model, 'output_fmt', '')).endswith('NHWC') else x


def grad_cam(
        model: nn.Module, images: torch.Tensor, targets: torch.Tensor | None = None, layer: str = '',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of a batch of images.

    Args:
        model: A classifier with logits (B, K). A copy of it runs, in eval mode.
        images: (B, C, H, W).
        targets: Class indices (B,); the predicted ones where None.
        layer: Name of the module to look at; :func:`look_layer` chooses if empty.

    Returns:
        Maps (B, H, W) from 0 to 1 in the size of the images, and softmax scores (B,), of the targets.

    Raises:
        ValueError: There is no such module.
        ImportError: The library is missing.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        raise ImportError("Grad-CAM needs the library grad-cam: pip install grad-cam.") from None
    model = copy.deepcopy(unwrap_model(model)).eval().requires_grad_(True)
    try:
        module = model.get_submodule(layer or look_layer(model))
    except AttributeError:
        raise ValueError(f"This {type(model).__name__} has no module '{layer}'.") from None
    cam = GradCAM(model, [module], reshape_transform=partial(_as_map, model))
    wanted = None if targets is None else [ClassifierOutputTarget(int(target)) for target in targets]
    maps = torch.from_numpy(cam(input_tensor=images, targets=wanted)).float()
    scores = cam.outputs.detach().float().softmax(1).cpu()
    chosen = scores.argmax(1) if targets is None else targets.cpu()
    return maps, scores.gather(1, chosen.long()[:, None])[:, 0]


@dataclass
class AverageLook:
    """What :func:`average_cam` found: means over a number of images."""

    map: torch.Tensor  #: (H, W), from 0 to 1
    image: torch.Tensor  #: (C, H, W), as the model saw it
    score: float  #: softmax score of the targets
    images: int


def average_cam(
        model: nn.Module, loader: Iterable[Any], *, samples: int | None = 500, layer: str = '', labelled: bool = True,
        progress: bool = True,
) -> AverageLook:
    """The mean of Grad-CAM's maps over images: the region that a network looks at on average (ASR paper, Figure 6).

    ``loader`` and ``samples`` as :class:`Images` has them. The target is the label, or the predicted class where there
    is none or ``labelled`` is off.
    """
    images = Images(loader, model, samples, progress)
    total, image, score = torch.zeros(()), torch.zeros(()), 0.0
    for batch, labels in images.batches('Grad-CAM'):
        maps, scores = grad_cam(model, batch, labels if labelled else None, layer)
        total = total + maps.double().sum(0)
        image = image + batch.sum(0)
        score += scores.sum().item()
    return AverageLook((total / images.seen).float(), image / images.seen, score / images.seen, images.seen)
