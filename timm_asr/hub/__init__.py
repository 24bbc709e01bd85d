"""Weights as folders that timm loads, and as repositories on the Hugging Face Hub."""

from .graph import export_onnx, export_program
from .load import Published, list_published, load_trainable, verify_weights
from .push import Publication, push_to_hub
from .save import save_fused

__all__ = [
    'Publication',
    'Published',
    'export_onnx',
    'export_program',
    'list_published',
    'load_trainable',
    'push_to_hub',
    'save_fused',
    'verify_weights',
]
