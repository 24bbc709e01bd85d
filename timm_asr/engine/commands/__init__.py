"""One file a command: ``timm-asr NAME ...`` calls ``main`` of ``NAME.py`` here, and a new file is a new command.

The first line of its docstring is what ``timm-asr --help`` lists. Its ``OPTIONS`` are made of the shared groups of
:mod:`timm_asr.engine.flags` and of its own; nothing at its top imports torch, so that help is fast. Where the work is a
function of another module, :func:`command` makes ``main``. docs/commands.md has an example.

Bad input raises :class:`timm_asr.errors.BadInput` with one sentence; :func:`dispatch` prints it and returns the status.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import nearest, run_main
from ..options import Option, parse
from ..recipes import list_recipes


def command(name: str, options: Sequence[Option], work: str, refused: Mapping[str, str] | None = None,
            ) -> Callable[..., int]:
    """The ``main(argv, prog)`` of the command file ``name``, which returns the exit status.

    ``work`` is 'module.function' of the engine, called with the options, the words of the line and the program's name.
    """
    def main(argv: Sequence[str], prog: str = f'timm-asr {name.rpartition(".")[2].replace("_", "-")}') -> int:
        args = parse(options, refused, argv, prog, sys.modules[name].__doc__ or '')
        module, function = work.split('.')
        return getattr(importlib.import_module(f'...{module}', name), function)(args, argv, prog) or 0

    return main


def names() -> list[str]:
    """The commands: the files of this folder, with a dash where a file has an underscore."""
    return [found.name.replace('_', '-') for found in pkgutil.iter_modules(__path__)]


def _module(name: str) -> Any:
    return importlib.import_module(f'{__name__}.{name.replace("-", "_")}')


def summary(name: str) -> str:
    """What a command does, in one line: the first of its file."""
    return (_module(name).__doc__ or '').splitlines()[0]


def usage(prog: str) -> str:
    """What ``--help`` prints without a command."""
    lines = [f'  {name:<20}{summary(name)}' for name in names()]
    return '\n'.join([f'usage: {prog} COMMAND [options]', '', *lines, '',
                      f'`{prog} COMMAND --help` lists the options of a command.',
                      *(f'Recipes for `{prog} {name} --config`: {", ".join(list_recipes(name))}'
                        for name in ('train', 'detect')), ''])


def dispatch(words: Sequence[str], prog: str) -> int:
    """Run the command that a line names, without the program's name, which messages call ``prog``; returns the exit
    status: 0 done, 1 stopped, 2 bad input, 130 interrupted.
    """
    if not words or words[0] in ('-h', '--help'):
        print(usage(prog), end='')
        return 0 if words else 2
    name, *rest = words
    if name not in names():
        print(f'{prog}: error: unknown command {name!r}; did you mean {nearest(name, names())[0]!r}?', file=sys.stderr)
        return 2
    return run_command(name, rest, f'{prog} {name}')


def run_command(name: str, argv: Sequence[str], prog: str) -> int:
    """Run one command by name; ``prog`` is what messages call it."""
    command = _module(name)
    return run_main(lambda: command.main(argv, prog), prog)
