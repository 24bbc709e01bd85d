"""Data: timm's data set factory, and the small embedded set of the first run."""

from .digits import Digits
from .factory import create_dataset

__all__ = ['Digits', 'create_dataset']
