"""Run another program's script with the models of this package registered."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import BadInput

USAGE = """usage: {prog} SCRIPT [ARGUMENT ...]

Runs a Python script with its arguments, after the models of this package are registered with timm:

  {prog} TIMM/train.py --model resnet50_asr_se --data-dir IMAGES
  {prog} TIMM/validate.py --model resnet50_asr_se --checkpoint FILE --reparam --data-dir IMAGES

timm's own --reparam folds these models.
"""


def main(argv: Sequence[str] | None = None, prog: str = 'timm-asr run') -> int:
    """Run the command; returns the exit status.

    Raises:
        BadInput: If there is no such script.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (['-h'], ['--help']):
        print(USAGE.format(prog=prog), end='')
        return 0
    if not words or words[0].startswith('-'):
        raise BadInput(f'no script given: {prog} SCRIPT [ARGUMENT ...]')
    script, *arguments = words
    if not Path(script).is_file():
        raise BadInput(f'no script at {script}')
    before = sys.argv, list(sys.path)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).absolute().parent))
    try:
        runpy.run_path(script, run_name='__main__')
    finally:
        sys.argv, sys.path[:] = before
    return 0
