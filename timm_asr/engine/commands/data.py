"""Make a data set of the papers out of another: mini-ImageNet out of ImageNet."""

from collections.abc import Sequence
from pathlib import Path

from ...errors import BadInput
from ..flags import pick
from ..options import Option, group, parse, switch, value

OPTIONS: list[Option] = group(
    'Data set',
    value('name', str, None, 'mini-imagenet: 100 classes, 500 training and 100 validation images of each',
          choices=('mini-imagenet',)),
    *pick('data-dir', help='ImageNet: a folder with train/, or the folder of the classes themselves'),
    value('--classes', str, '', 'text file with the names of the classes; the usual 100 if unset', metavar='FILE'),
    value('--seed', int, 0, 'which images are drawn', metavar='S'),
    value('--output', str, 'data/mini-imagenet', 'folder to write, with train/ and val/', '-o', metavar='FOLDER'),
    switch('--copy', 'write copies of the images instead of links to them'),
    switch('--no-progress', 'no progress bar'),
)


def main(argv: Sequence[str], prog: str = 'timm-asr data') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    if not args.data_dir:
        raise BadInput('--data-dir says where ImageNet is')
    from ...data.mini_imagenet import CLASSES, make_mini_imagenet
    try:
        classes = Path(args.classes).read_text(encoding='utf-8').split() if args.classes else CLASSES
        make_mini_imagenet(args.data_dir, args.output, classes, args.seed, args.copy, not args.no_progress)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None
    print(f'written {args.output}: {len(classes)} classes')
    return 0
