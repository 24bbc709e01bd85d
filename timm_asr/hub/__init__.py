"""Weights as folders that timm loads, and as repositories on the Hugging Face Hub."""

from .save import save_fused

__all__ = ['save_fused']
