"""COCO's average precision and recall, computed by faster-coco-eval."""

import copy
import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchvision.ops import box_convert
from tqdm import tqdm

#: COCO's twelve figures, in the order of its own summary.
FIGURES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large', 'AR1', 'AR10', 'AR100', 'AR_small', 'AR_medium',
           'AR_large')


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
        ImportError: faster-coco-eval is missing.
        ValueError: The loader gives no images, or there is no ground truth.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ImportError("COCO's evaluation needs a package: pip install faster-coco-eval.") from None
    coco = coco if coco is not None else getattr(getattr(loader, 'dataset', None), 'coco', None)
    if coco is None:
        raise ValueError("The loader's data set has no COCO ground truth; pass it as coco=COCO(annotation_file).")
    like = next(p for p in detector.parameters() if p.is_floating_point())
    modes = {module: module.training for module in detector.modules()}
    answers: dict[int, dict[str, list[dict[str, Any]]]] = {}  # of each image, by IoU type
    detector.eval()
    try:
        for images, targets in tqdm(loader, desc='evaluating', disable=not (progress and sys.stderr.isatty())):
            for target, output in zip(targets, detector([image.to(like) for image in images]), strict=True):
                image_id = int(target['image_id'])
                if image_id not in answers:
                    answers[image_id] = _rows(image_id, output)
    finally:
        for module, training in modes.items():
            module.training = training
    if dist.is_initialized():
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, answers)
        # Samplers repeat images, so that all processes have as many; the first answer counts.
        answers = {image_id: rows for part in reversed(parts) for image_id, rows in part.items()}
    if not answers:
        raise ValueError('The loader gives no images to evaluate on.')
    truth = COCO(copy.deepcopy(coco.dataset))  # evaluation changes it
    for annotation in truth.dataset['annotations']:  # what some files leave out
        annotation.setdefault('iscrowd', 0)
        annotation.setdefault('area', annotation['bbox'][2] * annotation['bbox'][3])
    figures = {}
    for kind in next(iter(answers.values())):
        rows = [dict(row) for answer in answers.values() for row in answer[kind]]  # written into
        evaluation = COCOeval_faster(truth, truth.loadRes(rows), kind)
        evaluation.params.imgIds = sorted(answers)
        evaluation.run()
        figures[kind] = dict(zip(FIGURES, map(float, evaluation.stats), strict=False))
    return figures


def _rows(image_id: int, output: dict[str, torch.Tensor]) -> dict[str, list[dict[str, Any]]]:
    """A detector's answer to one image as COCO writes results; its soft masks (N, 1, H, W) are cut at one half."""
    boxes = box_convert(output['boxes'].float(), 'xyxy', 'xywh').tolist()
    same = [{'image_id': image_id, 'category_id': label, 'score': score}
            for label, score in zip(output['labels'].tolist(), output['scores'].tolist(), strict=True)]
    rows = {'bbox': [{**row, 'bbox': box} for row, box in zip(same, boxes, strict=True)]}
    if 'masks' in output:
        from faster_coco_eval.core.mask import encode
        masks = (output['masks'][:, 0] > 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        rows['segm'] = [{**row, 'segmentation': mask}
                        for row, mask in zip(same, encode(masks.copy(order='F')), strict=True)]
    return rows
