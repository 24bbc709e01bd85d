"""Data sets in COCO's format."""

import contextlib
import copy
import importlib.util
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

_NEEDED = {'bbox': '', 'category_id': ' from 1 on, and detectors take 0 for the background',
           'segmentation': '; without masks=True it can be read'}


class CocoSet(Dataset):
    """Images and targets of a data set in COCO's format, as torchvision's detectors take them.

    torchvision's ``CocoDetection``, with targets for images without objects too, and without crowds and boxes of no
    area, at which training would fail. An image is (3, H, W) in [0, 1]; its target has ``boxes`` (N, 4) as x1, y1, x2,
    y2 in pixels, ``labels`` (N,), the ``category_id`` of the annotations, ``image_id``, and ``masks`` (N, H, W) if
    asked for.

    Args:
        images: A folder.
        annotations: A JSON file.
        transforms: Of torchvision's v2, called with image and target, in place of the conversion to a tensor. Boxes
            and masks are torchvision's ``tv_tensors`` there; boxes that are left without area are dropped afterwards.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: There is no such folder, the file is missing or not in COCO's format, an annotation lacks its box,
            or its segmentation where masks are asked for, or is of a category 0.
    """

    def __init__(self, images: str | os.PathLike, annotations: str | os.PathLike, masks: bool = False,
                 transforms: Callable[..., Any] | None = None) -> None:
        if importlib.util.find_spec('pycocotools') is None:
            raise ImportError("COCO's format needs pycocotools: pip install pycocotools.")
        if not Path(images).is_dir():
            raise ValueError(f'There is no folder of images at {images}.')
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                plain = CocoDetection(str(images), str(annotations))
            for annotation in plain.coco.dataset['annotations']:
                for key, note in _NEEDED.items():
                    if not annotation.get(key) and (masks or key != 'segmentation'):
                        raise ValueError(f"its annotation {annotation['id']} has no '{key}'{note}")
        except (AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            reason = f'there is no {error}' if isinstance(error, KeyError) else error
            raise ValueError(f"{annotations} is not in COCO's format: {reason}.") from None
        self.masks, self.coco, self.ids, self.folder = masks, plain.coco, plain.ids, images
        plain.coco = copy.copy(plain.coco)  # the truth to evaluate against has all of them
        plain.coco.imgToAnns = {
            image: [one for one in found if not one.get('iscrowd') and min(one['bbox'][2:]) > 0]
            for image, found in plain.coco.imgToAnns.items()}
        self.transforms = transforms or v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        self.dataset = wrap_dataset_for_transforms_v2(
            plain, target_keys={'image_id', 'boxes', 'labels', *(['masks'] if masks else [])})

    def __len__(self) -> int:
        return len(self.dataset)

    def filename(self, index: int, absolute: bool = False) -> str:
        """Path of an image, as timm's data sets give it: below the folder of the images, or ``absolute``."""
        name = self.coco.imgs[self.ids[index]]['file_name']
        return os.path.join(self.folder, name) if absolute else name

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image, target = self.dataset[index]
        if 'boxes' not in target:  # without objects
            size = tuple(v2.functional.get_size(image))
            target['boxes'] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format='XYXY', canvas_size=size)  # type: ignore[call-overload]
            target['labels'] = torch.zeros(0, dtype=torch.int64)
            if self.masks:
                target['masks'] = tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8))
        target['boxes'] = tv_tensors.wrap(target['boxes'].float(), like=target['boxes'])
        image, target = self.transforms(image, target)
        left = (target['boxes'][:, 2:] > target['boxes'][:, :2]).all(1)
        return image, {key: value.as_subclass(torch.Tensor)[left] if isinstance(value, torch.Tensor) else value
                       for key, value in target.items()}


def collate(batch: Sequence[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """A ``DataLoader``'s batch as two lists, since images differ in size."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
