"""Run another program's script with the models of this package registered."""

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...checkpoints.names import BEST
from ...errors import BadInput
from ..options import CONFIG_OPTIONS, build_parser
from . import export
from .train import OPTIONS

USAGE = """usage: {prog} SCRIPT [ARGUMENT ...]

Runs a Python script with its arguments, after the models of this package are registered with timm:

  {prog} TIMM/train.py --model resnet50_asr_se --data-dir IMAGES
  {prog} TIMM/validate.py --model resnet50_asr_se --checkpoint FILE --reparam --data-dir IMAGES

timm's own --reparam folds these models. After timm's train.py the best checkpoint of the run is exported into the
folder of the run, as `train` does at its end: the folded network, checked on the validation images.
"""


def main(argv: Sequence[str], prog: str = 'timm-asr run') -> int:
    """Run the command; returns the exit status."""
    if argv[:1] in (['-h'], ['--help']):
        print(USAGE.format(prog=prog), end='')
        return 0
    if not argv or argv[0].startswith('-'):
        raise BadInput(f'no script given: {prog} SCRIPT [ARGUMENT ...]')
    script, *arguments = argv
    if not Path(script).is_file():
        raise BadInput(f'no script at {script}')
    before = sys.argv, list(sys.path)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).absolute().parent))
    try:
        with noted_folders() as folders:
            runpy.run_path(script, run_name='__main__')
    finally:
        sys.argv, sys.path[:] = before
    if Path(script).name == 'train.py' and os.environ.get('RANK', '0') == '0':
        best = next((path for folder in folders if (path := Path(folder) / BEST).is_file()), None)
        return 0 if best is None else export_best(best, arguments, prog)
    return 0


@contextmanager
def noted_folders() -> Iterator[list[str]]:
    """Inside, the folders that timm's ``CheckpointSaver`` is told to write into."""
    from timm.utils import CheckpointSaver  # imports torch, which help does without
    folders: list[str] = []
    init = CheckpointSaver.__init__

    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        folders.append(self.checkpoint_dir)

    CheckpointSaver.__init__ = noting  # type: ignore[method-assign]
    try:
        yield folders
    finally:
        CheckpointSaver.__init__ = init  # type: ignore[method-assign]


def export_best(best: Path, arguments: Sequence[str], prog: str) -> int:
    """Export the best checkpoint of timm's ``train.py``, run with these arguments, into its folder; the exit status."""
    from ...checkpoints.read import read_yaml  # imports torch, which help does without
    parser = build_parser([*OPTIONS, *CONFIG_OPTIONS], prog)
    if file := parser.parse_known_args(arguments)[0].config:
        parser.set_defaults(**read_yaml(file))
    args = parser.parse_known_args(arguments)[0]
    words = [str(best), '--output', str(best.parent), '--force', '--workers', str(args.workers)]
    words += ['--use-ema'] if args.model_ema and not args.model_ema_force_cpu else []
    for name, value in (('--data-dir', args.data_dir or args.data), ('--dataset', args.dataset),
                        ('--split', args.val_split), ('--class-map', args.class_map), ('--device', args.device)):
        words += [f'{name}={value}'] if value else []
    return export.main(words, prog)
