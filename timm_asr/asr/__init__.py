"""Attention fed by a learned vector: the vector, the wrapper around a layer, and where it goes."""

from . import timm_blocks  # noqa: F401 - registers what it knows
