"""The package's errors, under the name that the engine's modules use."""

from ..errors import BadInput, Stopped, nearest, run_main, sentence

__all__ = ['BadInput', 'Stopped', 'nearest', 'run_main', 'sentence']
