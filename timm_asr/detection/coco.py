"""Data sets in COCO's format, and COCO's evaluation, by pycocotools."""

import contextlib
import copy
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from tqdm import tqdm

_METRICS = (
    'AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large', 'AR1', 'AR10', 'AR100', 'AR_small', 'AR_medium',
    'AR_large')


def _pycocotools() -> None:
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise ImportError("COCO's format needs pycocotools: pip install 'timm-asr[detection]'.") from None


class CocoSet(Dataset):
    """Images and targets of a data set in COCO's format, as torchvision's detectors take them.

    torchvision's ``CocoDetection``, with targets for images without objects too, and without crowds and boxes of no
    area, at which training would fail. An image is (3, H, W) in [0, 1]; its target has ``boxes`` (N, 4) as x1, y1, x2,
    y2 in pixels, ``labels`` (N,), the ``category_id`` of the annotations, ``image_id``, and ``masks`` (N, H, W) if
    asked for.

    Args:
        images: Folder of the images.
        annotations: JSON file of the annotations.
        masks: Whether targets have masks.
        transforms: Of torchvision's v2, called with image and target, in place of the conversion to a tensor. Boxes
            and masks are torchvision's ``tv_tensors`` there; boxes that are left without area are dropped afterwards.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: There is no such folder, the file is missing or not in COCO's format, an annotation lacks its box,
            or its segmentation where masks are asked for, or is of a category 0.
    """

    def __init__(
            self,
            images: str | os.PathLike,
            annotations: str | os.PathLike,
            masks: bool = False,
            transforms: Callable[..., Any] | None = None,
    ) -> None:
        _pycocotools()
        if not Path(images).is_dir():
            raise ValueError(f'There is no folder of images at {images}.')
        _check_annotations(Path(annotations), masks)
        self.masks = masks
        with contextlib.redirect_stdout(io.StringIO()):
            plain = CocoDetection(str(images), str(annotations))
        self.coco = plain.coco
        _complete(self.coco)
        self.transforms = transforms or v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        keys = {'image_id', 'boxes', 'labels', 'iscrowd'} | ({'masks'} if masks else set())
        self.dataset = wrap_dataset_for_transforms_v2(plain, target_keys=keys)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image, target = self.dataset[index]
        if 'boxes' not in target:
            size = tuple(v2.functional.get_size(image))
            target['boxes'] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format='XYXY', canvas_size=size)  # type: ignore[call-overload]
            target['labels'] = torch.zeros(0, dtype=torch.int64)
            if self.masks:
                target['masks'] = tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8))
        target['boxes'] = tv_tensors.wrap(target['boxes'].float(), like=target['boxes'])
        # Transforms drop objects from tensors alone, so what they are not to see goes before.
        crowd = torch.tensor(target.pop('iscrowd', []), dtype=torch.bool)
        image, target = self.transforms(image, _objects(target, _with_area(target['boxes']) & ~crowd))
        target = _objects(target, _with_area(target['boxes']))
        return image, {key: value.as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) else value
                       for key, value in target.items()}


def _with_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _objects(target: dict[str, Any], chosen: torch.Tensor) -> dict[str, Any]:
    """The target of some of its objects."""
    return {key: tv_tensors.wrap(value[chosen], like=value) if key in ('boxes', 'labels', 'masks') else value
            for key, value in target.items()}


def _complete(coco: Any) -> None:
    """Add what some files leave out and pycocotools needs: the area (here the box's), and that it is no crowd."""
    for annotation in coco.dataset.get('annotations', ()):
        annotation.setdefault('iscrowd', 0)
        if 'area' not in annotation:
            annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]


def _check_annotations(path: Path, masks: bool) -> None:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError:
        raise ValueError(f'There are no annotations at {path}.') from None
    except ValueError:
        raise ValueError(f'{path} is not a JSON file.') from None
    absent = [key for key in ('images', 'annotations', 'categories') if not (
        isinstance(content, dict) and isinstance(content.get(key), list))]
    if absent:
        raise ValueError(f"{path} is not in COCO's format: it has no list '{absent[0]}'.")
    needed = ('image_id', 'category_id', 'bbox', *(('segmentation',) if masks else ()))
    for annotation in content['annotations']:
        for key in needed:
            if annotation.get(key) in (None, [], {}):
                also = '; without masks=True it can be read' if key == 'segmentation' else ''
                raise ValueError(f"{path} has an annotation (id {annotation.get('id')}) without '{key}'{also}.")
        if annotation['category_id'] == 0:
            raise ValueError(f'{path} has objects of category 0, which detectors take for the background; number the '
                             'categories from 1.')


def collate(batch: Sequence[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """A ``DataLoader``'s batch as two lists, since images differ in size."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


@torch.inference_mode()
def evaluate_coco(
        detector: nn.Module,
        loader: Iterable[Any],
        coco: Any = None,
        iou_types: Sequence[str] | None = None,
        progress: bool = True,
) -> dict[str, dict[str, float]]:
    """COCO's average precision and recall of a detector.

    Args:
        detector: One of torchvision's detectors. Runs in eval mode, and each of its modules is left in the mode it was
            in.
        loader: Gives (images, targets), each target with its ``image_id``: a ``DataLoader`` of a :class:`CocoSet` with
            :func:`collate`.
        coco: The ground truth, a ``pycocotools.coco.COCO``; by default that of the loader's data set. Images that the
            loader does not give do not count.
        iou_types: 'bbox', 'segm' or both; by default what the detector puts out.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        For each IoU type the twelve figures of COCO's evaluation, from 0 to 1, -1 where there is nothing to measure:
        'AP' (over IoU 0.5 to 0.95), 'AP50', 'AP75', 'AP_small', ..., 'AR100', ...

    Raises:
        ImportError: pycocotools is missing.
        ValueError: The loader gives no images or one that the ground truth has not, or the ground truth or an IoU
            type is missing.
    """
    _pycocotools()
    from pycocotools.cocoeval import COCOeval

    coco = coco if coco is not None else getattr(getattr(loader, 'dataset', None), 'coco', None)
    if coco is None:
        raise ValueError("The loader's data set has no COCO ground truth; pass it as coco=COCO(annotation_file).")
    device = next(detector.parameters()).device
    dtype = next(p.dtype for p in detector.parameters() if p.is_floating_point())
    modes = {module: module.training for module in detector.modules()}
    ids: list[int] = []
    results: dict[str, list[dict[str, Any]]] = {'bbox': [], 'segm': []}
    segments = False
    detector.eval()
    try:
        for images, targets in tqdm(loader, desc='evaluating', disable=not (progress and sys.stderr.isatty())):
            batch = [int(target['image_id']) for target in targets]
            foreign = [image_id for image_id in batch if image_id not in coco.imgs]
            if foreign:
                raise ValueError(f'The loader gives the image {foreign[0]}, which the ground truth does not have; pass '
                                 'that of its data set as coco=....')
            outputs = detector([image.to(device, dtype) for image in images])
            for image_id, output in zip(batch, outputs, strict=True):
                segments = segments or 'masks' in output
                _add(results, image_id, output)
            ids += batch
    finally:
        for module, training in modes.items():
            module.training = training
    if not ids:
        raise ValueError('The loader gives no images to evaluate on.')
    has = ('bbox', 'segm') if segments else ('bbox',)
    wrong = [kind for kind in iou_types or () if kind not in has]
    if wrong:
        raise ValueError(f"This {type(detector).__name__} has no '{wrong[0]}' to evaluate; it puts out {has[0]}"
                         f'{" and segm" if segments else " alone"}.')
    figures = {}
    for kind in iou_types or has:
        with contextlib.redirect_stdout(io.StringIO()):
            # A copy, since pycocotools turns its polygons into bytes, which a data set of the same object cannot read.
            truth = copy.deepcopy(coco)
            _complete(truth)
            evaluation = COCOeval(truth, _found(truth, results[kind]), kind)
            evaluation.params.imgIds = sorted(set(ids))
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures[kind] = dict(zip(_METRICS, map(float, evaluation.stats), strict=True))
    return figures


def _found(truth: Any, detections: list[dict[str, Any]]) -> Any:
    """Detections as pycocotools evaluates them; its own way takes no empty list."""
    if detections:
        return truth.loadRes(detections)
    empty = type(truth)()
    empty.dataset = {**truth.dataset, 'annotations': []}
    empty.createIndex()
    return empty


def _add(results: dict[str, list[dict[str, Any]]], image_id: int, output: dict[str, torch.Tensor]) -> None:
    from pycocotools import mask

    boxes = output['boxes'].cpu().double()  # some devices have no float64
    boxes[:, 2:] -= boxes[:, :2]
    scores, labels = output['scores'].tolist(), output['labels'].tolist()
    common = [{'image_id': image_id, 'category_id': label, 'score': score}
              for label, score in zip(labels, scores, strict=True)]
    results['bbox'] += [{**row, 'bbox': box} for row, box in zip(common, boxes.tolist(), strict=True)]
    for row, soft in zip(common, output.get('masks', ()), strict=False):
        code = mask.encode(np.asfortranarray((soft[0] > 0.5).cpu().numpy().astype(np.uint8)))
        results['segm'].append({**row, 'segmentation': {**code, 'counts': code['counts'].decode()}})
