"""``python -m timm_asr publish``: a folder of weights becomes a repository on the Hugging Face Hub."""

from collections.abc import Sequence

from ...errors import BadInput
from ...export.push import describe, push_to_hub
from ..options import Option, parse

PUBLISH_OPTIONS = [
    Option('folder', type=str, help='folder that `export` or `train` wrote, or any that timm loads by local-dir:',
           metavar='FOLDER', default=None, group='What to publish'),
    Option('--license', type=str, default='', help='as the Hub names it (apache-2.0); none is stated otherwise',
           metavar='NAME', group='What to publish'),
    Option('--plain', type=str, default='', help="folder of the plain backbone's run, for the accuracy beside it",
           metavar='FOLDER', group='What to publish'),
    Option('--repo-id', type=str, default='', help='the repository', metavar='OWNER/NAME', group='Where'),
    Option('--private', kind='switch', help='make the new repository private', group='Where'),
    Option('--revision', type=str, default='', help='branch to commit to, made from main if absent', metavar='NAME',
           group='Where'),
    Option('--create-pr', kind='switch', help='open a pull request instead', group='Where'),
    Option('--commit-message', type=str, default='', help='title of the commit', metavar='TEXT', group='Where'),
    Option('--overwrite', kind='switch', help='replace other content of the same names', group='How'),
    Option('--dry-run', kind='switch', help='list every file and its size, and send nothing', group='How'),
    Option('--no-progress', kind='switch', help='no progress bars', group='How'),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m timm_asr publish`` with this command line; returns the exit status."""
    args = parse(PUBLISH_OPTIONS, argv=argv, prog='timm_asr publish',
                 description='Publish a folder of weights on the Hugging Face Hub, with a model card, in one commit.')
    if not args.repo_id:
        raise BadInput('--repo-id OWNER/NAME says where to publish; it is missing')
    found = push_to_hub(
        args.folder, args.repo_id, private=args.private, revision=args.revision or None, create_pr=args.create_pr,
        dry_run=args.dry_run, overwrite=args.overwrite, license=args.license or None, plain=args.plain or None,
        commit_message=args.commit_message or None, progress=not args.no_progress)
    print('\n'.join(describe(found, args.dry_run)))
    return 0
