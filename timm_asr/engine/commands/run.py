"""``python -m timm_asr run SCRIPT ...``: another program's script, with this package's models in timm's registry."""

import logging
import runpy
import sys
import tokenize
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ...errors import BadInput
from ...inference.reparameterize import reparameterize

_logger = logging.getLogger(__name__)

USAGE = """usage: python -m timm_asr run [--reparam] SCRIPT [ARGUMENT ...]

Runs a Python script with its arguments unchanged, after the models of this package are registered with timm.

  --reparam   give every model that the script makes its inference form as soon as the script calls model.eval();
              after SCRIPT it is the script's own option, and this one only where the script has none
"""


class _Reparameterizer:
    """Makes ``timm.create_model`` return models that turn into their inference form at the first ``eval()``.

    A script loads its weights between the two, so the form cannot change any earlier.
    """

    def __init__(self) -> None:
        self.count = 0

    def _train(self, model: nn.Module, mode: bool = True) -> nn.Module:
        if mode:
            return type(model).train(model, mode)
        model.__dict__.pop('train', None)
        model.eval()
        self.count += 1
        return reparameterize(model)

    def wrap(self, create_model: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        @wraps(create_model)
        def create(*args: Any, **kwargs: Any) -> nn.Module:
            model = create_model(*args, **kwargs)
            # A partial, not a closure: a deep copy of the model gets one that is its own.
            model.__dict__['train'] = partial(self._train, model)
            return model
        return create

    def __deepcopy__(self, memo: dict) -> '_Reparameterizer':
        return self

    def __enter__(self) -> '_Reparameterizer':
        self.before = timm.create_model
        timm.create_model = timm.models.create_model = self.wrap(self.before)
        return self

    def __exit__(self, *_: object) -> None:
        timm.create_model = timm.models.create_model = self.before


def _read(path: Path) -> str:
    if not path.is_file():
        raise BadInput(f'no script at {path}')
    try:
        with tokenize.open(path) as file:
            source = file.read()
        compile(source, str(path), 'exec')
    except (SyntaxError, ValueError) as error:
        raise BadInput(f'{path} is not a Python script: {str(error).splitlines()[0]}') from None
    return source


def run_script(path: str | Path, arguments: Sequence[str], reparam: bool = False) -> None:
    """Run a script as ``python SCRIPT ARGUMENTS`` would, in this process, which has the models registered.

    Args:
        path: The script.
        arguments: Its ``sys.argv[1:]``.
        reparam: Give the models it makes their inference form when it puts them into eval mode.

    Raises:
        BadInput: If there is no such script, or it is not Python.
    """
    path = Path(path)
    _read(path)
    argv, search = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.absolute().parent))
    try:
        if not reparam:
            runpy.run_path(str(path), run_name='__main__')
            return
        with _Reparameterizer() as done:
            try:
                runpy.run_path(str(path), run_name='__main__')
            finally:
                if not done.count:
                    _logger.warning(f'--reparam had no effect: {path.name} put no model of timm.create_model into '
                                    'eval mode.')
    finally:
        sys.argv, sys.path[:] = argv, search


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m timm_asr run`` with this command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    reparam = False
    while words and words[0].startswith('-'):
        word = words.pop(0)
        if word in ('-h', '--help'):
            print(USAGE, end='')
            return 0
        if word != '--reparam':
            raise BadInput(f'run: unknown option {word}; options of the script come after it')
        reparam = True
    if not words:
        raise BadInput('run: no script given (python -m timm_asr run [--reparam] SCRIPT [ARGUMENT ...])')
    script, *arguments = words
    if '--reparam' in arguments and '--reparam' not in _read(Path(script)):
        arguments = [word for word in arguments if word != '--reparam']
        reparam = True
    run_script(script, arguments, reparam)
    return 0
