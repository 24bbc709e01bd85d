"""Attention fed by a learned vector: the vector, the wrapper around a layer, and where it goes."""

from . import branch_blocks, norm_act  # noqa: F401 - register their wrappers
