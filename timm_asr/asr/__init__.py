"""Attention fed by a learned vector: the vector, the wrapper around a layer, and where it goes."""

from . import norm_act, timm_blocks  # noqa: F401 - register what they know
