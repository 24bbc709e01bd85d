"""Channel attention for timm: importing this package registers its models with ``timm.create_model``."""

from .version import __version__

__all__ = ['__version__']
