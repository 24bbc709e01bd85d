"""Where a network looks: Grad-CAM (ASR paper, Figure 6; DIA paper, Figure 6), by the library grad-cam.

Needs the extra ``gradcam``::

    maps, scores = grad_cam(model, images)            # (B, H, W) from 0 to 1, (B,)
    average = average_cam(model, loader, samples=500)
    average.map                                       # (H, W)
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from .images import Images


def stage_names(model: nn.Module) -> list[str]:
    """Modules at whose ends a network of timm has its feature maps, without its stem; needs ``feature_info``."""
    info = getattr(model, 'feature_info', None)
    names = [entry['module'] for entry in (getattr(info, 'info', info) or [])]
    names = [name for name in names if name not in ('stem', 'bn1', 'act1', 'conv1')]
    if not names:
        raise ValueError(f'This {type(model).__name__} has no feature_info that names its stages; name a layer.')
    return names


def look_layer(model: nn.Module) -> str:
    """The layer that Grad-CAM looks at if none is named.

    It is the last stage of a network with feature maps. A transformer has tokens: there it is the first norm of the
    last block, since behind it only the class token reaches the classifier.
    """
    blocks = getattr(model, 'blocks', None)
    if hasattr(model, 'num_prefix_tokens') and hasattr(blocks[-1], 'norm1'):
        return f'blocks.{len(blocks) - 1}.norm1'
    return stage_names(model)[-1]


def _as_map(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Turns what a layer puts out into (B, C, H, W): tokens of a transformer, or channels that come last."""
    prefix = getattr(model, 'num_prefix_tokens', 0)
    last = str(getattr(model, 'output_fmt', '')).endswith('NHWC')

    def as_map(x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 3:
            x = x[:, prefix:]
            grid = getattr(getattr(model, 'patch_embed', None), 'grid_size', None)
            height, width = grid if grid and grid[0] * grid[1] == x.shape[1] else (round(x.shape[1] ** 0.5),) * 2
            return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return x.permute(0, 3, 1, 2) if last else x

    return as_map


class Looker:
    """Grad-CAM of one model; ``looker(images, targets)`` for batch after batch.

    Args:
        model: A classifier with logits (B, K). It is copied, and so left as it is.
        layer: Name of the module to look at; :func:`look_layer` chooses if empty.

    Raises:
        ValueError: There is no such module.
        ImportError: The library is missing.
    """

    def __init__(self, model: nn.Module, layer: str = '') -> None:
        try:
            from pytorch_grad_cam import GradCAM
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        except ImportError:
            raise ImportError("Grad-CAM needs the library grad-cam: pip install grad-cam.") from None
        self.model = copy.deepcopy(unwrap_model(model)).eval().requires_grad_(True)
        self.layer = layer or look_layer(self.model)
        try:
            module = self.model.get_submodule(self.layer)
        except AttributeError:
            raise ValueError(f"This {type(model).__name__} has no module '{layer}'.") from None
        self._target = ClassifierOutputTarget
        self._cam = GradCAM(self.model, [module], reshape_transform=_as_map(self.model))

    def __call__(self, images: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (B, H, W) from 0 to 1 in the size of the images, and softmax scores (B,), of the targets.

        These are class indices (B,); the predicted ones where None.
        """
        wanted = None if targets is None else [self._target(int(target)) for target in targets]
        maps = torch.from_numpy(self._cam(input_tensor=images, targets=wanted)).float()
        scores = self._cam.outputs.detach().float().softmax(1).cpu()
        chosen = scores.argmax(1) if targets is None else targets.cpu()
        return maps, scores.gather(1, chosen.long()[:, None])[:, 0]


def grad_cam(
        model: nn.Module, images: torch.Tensor, targets: torch.Tensor | None = None, layer: str = '',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of a few images: :class:`Looker` for one batch."""
    return Looker(model, layer)(images, targets)


@dataclass
class AverageLook:
    """What :func:`average_cam` found: means over a number of images."""

    map: torch.Tensor  #: (H, W), from 0 to 1
    score: float  #: softmax score of the targets
    images: int


def average_cam(
        model: nn.Module, loader: Iterable[Any], *, samples: int | None = 500, layer: str = '', progress: bool = True,
) -> AverageLook:
    """The mean of Grad-CAM's maps over images: the region that a network looks at on average (ASR paper, Figure 6).

    ``loader`` and ``samples`` as :class:`Images` has them; without labels, the predicted class is the target.
    """
    looker = Looker(model, layer)
    images = Images(loader, looker.model, samples, progress)
    total, score = torch.zeros(()), 0.0
    for batch, labels in images.batches('Grad-CAM'):
        maps, scores = looker(batch, labels)
        total = total + maps.double().sum(0)
        score += scores.sum().item()
    return AverageLook((total / images.seen).float(), score / images.seen, images.seen)
