"""COCO's average precision and recall, computed by torchmetrics."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchvision.ops import box_convert
from tqdm import tqdm

#: Name of a figure here -> its name in torchmetrics.
METRICS = {'AP': 'map', 'AP50': 'map_50', 'AP75': 'map_75', 'AP_small': 'map_small', 'AP_medium': 'map_medium',
           'AP_large': 'map_large', 'AR1': 'mar_1', 'AR10': 'mar_10', 'AR100': 'mar_100', 'AR_small': 'mar_small',
           'AR_medium': 'mar_medium', 'AR_large': 'mar_large'}


@torch.inference_mode()
def evaluate_coco(
        detector: nn.Module, loader: Iterable[Any], coco: Any = None, progress: bool = True,
) -> dict[str, dict[str, float]]:
    """COCO's average precision and recall of a detector.

    Args:
        detector: One of torchvision's detectors. It runs in eval mode; each module is left in the mode it was in.
        loader: Gives (images, targets), each target with its ``image_id``: a ``DataLoader`` of a :class:`CocoSet` with
            :func:`collate`.
        coco: The ground truth, a ``pycocotools.coco.COCO``. By default that of the loader's data set. Images that the
            loader does not give do not count.
        progress: Show a progress bar where standard error is a terminal.

    Returns:
        For each IoU type that the detector puts out, 'bbox', and 'segm' with masks, the twelve figures of COCO's
        evaluation, from 0 to 1, or -1 where there is nothing to measure: 'AP' (over IoU 0.5 to 0.95), 'AP50', 'AP75',
        'AP_small', ..., 'AR100', ...

    Raises:
        ImportError: torchmetrics or its COCO backend is missing.
        ValueError: The loader gives no images, or one that the ground truth does not have, or there is none.
    """
    coco = coco if coco is not None else getattr(getattr(loader, 'dataset', None), 'coco', None)
    if coco is None:
        raise ValueError("The loader's data set has no COCO ground truth; pass it as coco=COCO(annotation_file).")
    like = next(p for p in detector.parameters() if p.is_floating_point())
    modes = {module: module.training for module in detector.modules()}
    metric: Any = None
    detector.eval()
    try:
        for images, targets in tqdm(loader, desc='evaluating', disable=not (progress and sys.stderr.isatty())):
            ids = [int(target['image_id']) for target in targets]
            foreign = [image_id for image_id in ids if image_id not in coco.imgs]
            if foreign:
                raise ValueError(f'The loader gives the image {foreign[0]}, which the ground truth does not have; pass '
                                 'that of its data set as coco=....')
            found = [_found(output) for output in detector([image.to(like.device, like.dtype) for image in images])]
            if metric is None:
                kinds = ('bbox', 'segm') if 'masks' in found[0] else ('bbox',)
                metric = _metric(kinds)
            metric.update(found, [_truth(coco, image_id, 'segm' in kinds) for image_id in ids])
    finally:
        for module, training in modes.items():
            module.training = training
    parts: list[Any] = [None if metric is None else (kinds, metric.metric_state)]
    if dist.is_initialized():  # torchmetrics gathers tensors of the device alone, and equally many images
        own, parts = parts[0], [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
    parts = [part for part in parts if part is not None]  # a process may have had no image
    if not parts:
        raise ValueError('The loader gives no images to evaluate on.')
    kinds = parts[0][0]
    metric = _metric(kinds)
    for name in parts[0][1]:
        setattr(metric, name, [value for _, state in parts for value in state[name]])
    figures = metric.compute()
    prefix = {kind: f'{kind}_' if len(kinds) > 1 else '' for kind in kinds}
    return {kind: {ours: float(figures[prefix[kind] + theirs]) for ours, theirs in METRICS.items()} for kind in kinds}


def _metric(kinds: tuple[str, ...]) -> Any:
    try:
        from torchmetrics.detection import MeanAveragePrecision
        return MeanAveragePrecision(iou_type=kinds, backend='faster_coco_eval', max_detection_thresholds=[1, 10, 100],
                                    sync_on_compute=False)
    except ImportError:  # torchmetrics says the same of its backend, at greater length
        raise ImportError("COCO's evaluation needs two packages: pip install torchmetrics "
                          "faster-coco-eval.") from None


def _found(output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A detector's answer on the CPU, its soft masks (N, 1, H, W) cut at one half."""
    found = {'boxes': output['boxes'].cpu().float(), 'labels': output['labels'].cpu(),
             'scores': output['scores'].cpu().float()}
    if 'masks' in output:
        found['masks'] = output['masks'][:, 0].cpu() > 0.5
    return found


def _truth(coco: Any, image_id: int, masks: bool) -> dict[str, torch.Tensor]:
    """What the annotations say of an image, crowds included: the loader may have dropped or moved objects."""
    rows = coco.imgToAnns.get(image_id, [])
    size = (int(coco.imgs[image_id].get('height', 1)), int(coco.imgs[image_id].get('width', 1)))
    truth = {
        'boxes': box_convert(torch.tensor([row['bbox'] for row in rows]).reshape(-1, 4).float(), 'xywh', 'xyxy'),
        'labels': torch.tensor([row['category_id'] for row in rows], dtype=torch.int64),
        'iscrowd': torch.tensor([row.get('iscrowd', 0) for row in rows], dtype=torch.int64),
        # Where a file gives no area, it is that of the box.
        'area': torch.tensor([row.get('area', row['bbox'][2] * row['bbox'][3]) for row in rows], dtype=torch.float32),
    }
    if masks:
        drawn = [torch.from_numpy(coco.annToMask(row)).bool() for row in rows]
        truth['masks'] = torch.stack(drawn) if drawn else torch.zeros(0, *size, dtype=torch.bool)
    return truth
