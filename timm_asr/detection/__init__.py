"""torchvision's detectors over timm's networks; COCO's format and evaluation need the extra ``detection``."""

from .backbone import TimmPyramid
from .coco import CocoSet, collate
from .create import create_detector
from .evaluate import evaluate_coco

__all__ = ['CocoSet', 'TimmPyramid', 'collate', 'create_detector', 'evaluate_coco']
