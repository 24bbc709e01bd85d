"""Data: timm's data set factory, images in arrays, and the small embedded set of the first run."""

from .arrays import Digits, Npz
from .factory import create_dataset

__all__ = ['Digits', 'Npz', 'create_dataset']
