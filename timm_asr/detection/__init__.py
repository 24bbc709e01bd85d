"""torchvision's detectors over timm's networks; evaluation needs the extra ``detection`` (pycocotools)."""

from .backbone import TimmPyramid
from .coco import CocoSet, collate, evaluate_coco
from .create import create_detector, list_detectors

__all__ = ['CocoSet', 'TimmPyramid', 'collate', 'create_detector', 'evaluate_coco', 'list_detectors']
