"""Publish a folder of weights on the Hugging Face Hub, with a model card, in one commit."""

from collections.abc import Sequence

from ...errors import BadInput
from ..options import Option, group, parse, switch, value

OPTIONS: list[Option] = [
    *group(
        'What to publish',
        value('folder', str, None, 'folder that `export` or `train` wrote', metavar='FOLDER'),
        value('--license', str, '', 'as the Hub names it (apache-2.0); none is stated otherwise'),
        value('--dataset-name', str, '', "data set as the Hub names it (uoft-cs/cifar10); the run's, "
              "but no folder's, if unset"),
    ),
    *group(
        'Where',
        value('--repo-id', str, '', 'the repository', metavar='OWNER/NAME'),
        switch('--private', 'make the new repository private'),
    ),
    *group(
        'How',
        switch('--overwrite', 'replace other content of the same names'),
        switch('--dry-run', 'list every file and its size, show the card, and send nothing'),
    ),
]


def main(argv: Sequence[str], prog: str = 'timm-asr publish') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    if not args.repo_id:
        raise BadInput('--repo-id OWNER/NAME says where to publish; it is missing')
    from ...export.push import describe, push_to_hub
    found = push_to_hub(
        args.folder, args.repo_id, private=args.private, dry_run=args.dry_run, overwrite=args.overwrite,
        license=args.license or None, dataset_name=args.dataset_name or None)
    print('\n'.join(describe(found, args.dry_run)))
    return 0
