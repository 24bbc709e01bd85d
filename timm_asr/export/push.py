"""From a folder of weights to a repository on the Hub: one commit, in which nothing is ever deleted."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn

from ..checkpoints.names import CARD
from ..errors import BadInput
from .card import model_card
from .contents import File, collect
from .remote import FAILURES, LIBRARY, explained, split_repo_id
from .save import save_fused

_UNTOUCHED = '.gitattributes'  # all that a new repository has


@dataclass
class Publication:
    """What :func:`push_to_hub` did, or with ``dry_run`` would do.

    Attributes:
        url: Of the repository, or of the pull request.
        files: Path and size in bytes of every file that is published.
        left_behind: Files of the folder that are not.
        kept: Files of the repository that are not of this publication, and stay there.
        commit: Of the repository where it has these files; None after a dry run.
        changed: Whether a commit was made: not if all was there already.
    """

    repo_id: str
    url: str
    files: list[tuple[str, int]]
    left_behind: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    commit: str | None = None
    changed: bool = False
    card: str = ''


def push_to_hub(model_or_folder: nn.Module | str | os.PathLike, repo_id: str, *, private: bool = False,
                revision: str | None = None, create_pr: bool = False, dry_run: bool = False, overwrite: bool = False,
                token: str | None = None, license: str | None = None, dataset_name: str | None = None,
                plain: str | os.PathLike | None = None, keep_trainable: bool = False,
                commit_message: str | None = None, progress: bool = True) -> Publication:
    """Publish a folded network on the Hugging Face Hub, with a model card.

    ::

        push_to_hub('folder', 'OWNER/NAME', dry_run=True).card  # look first; nothing is sent
        push_to_hub('folder', 'OWNER/NAME')

    The repository is made if it is absent, and everything goes there in one commit. Nothing is ever deleted on the
    Hub. A repository with other content is left alone unless ``overwrite`` is given. Published are the files on the
    list that :func:`timm_asr.save_fused` and ``train.py`` wrote into ``config.json``, never a checkpoint.

    Args:
        model_or_folder: A model, which :func:`timm_asr.save_fused` folds first; or a folder that it wrote.
        repo_id: ``OWNER/NAME``; made if absent.
        private: Make the new repository private; refused for one that is public.
        revision: Branch to commit to, made from ``main`` if absent; ``main`` by default.
        create_pr: Open a pull request instead of changing the branch.
        dry_run: Only say what would be published, and write the card; the Hub is not asked.
        overwrite: Replace files of the same names with other content in a repository that was there.
        token: With permission to write; by default huggingface_hub's. It is neither printed nor stored.
        license: As the Hub names it, ``apache-2.0``; none is stated by default.
        dataset_name: The data set as the Hub names it, for the card's head; by default the run's, if not a folder's.
        plain: Folder of the plain backbone's own run, whose accuracy the card then shows beside the model's.
        keep_trainable: Of a model, publish the trainable form as well.
        commit_message: Title of the commit.
        progress: Show progress bars, if stderr is a terminal; ``HF_HUB_DISABLE_PROGRESS_BARS`` has the last word.

    Raises:
        ValueError: The model cannot be saved, see :func:`timm_asr.save_fused`.
        BadInput: The folder, the name, the token or the licence cannot work, or the repository has other content.
        Stopped: The Hub cannot be reached or refuses; the sentence says what is there now.
    """
    repo_id, revision = split_repo_id(repo_id, revision)
    if create_pr and revision not in (None, 'main'):
        raise BadInput(f'a pull request is made against main; leave out --create-pr or --revision {revision}')
    with ExitStack() as stack:
        if isinstance(model_or_folder, nn.Module):
            folder = Path(stack.enter_context(TemporaryDirectory())) / repo_id.partition('/')[2]
            save_fused(model_or_folder, folder, keep_trainable=keep_trainable)
        else:
            folder = Path(model_or_folder)
        files, left = collect(folder)
        own = next((file for file in files if file.path == CARD), None)
        if own is None:
            card = model_card(folder, repo_id, license, dataset_name, Path(plain) if plain else None)
            files.insert(0, File(CARD, card.encode()))
        elif license or plain or dataset_name:
            raise BadInput(f'{folder / CARD} is published as it stands, so --license, --dataset-name and --plain have '
                           'no place to go: write it there, or remove the file')
        else:
            card = (folder / CARD).read_text(encoding='utf-8', errors='replace')
        found = Publication(
            repo_id, f'{constants.ENDPOINT}/{repo_id}', [(f.path, f.size) for f in files], left, card=card)
        if not dry_run:
            asked = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
            if not asked and not (progress and sys.stderr.isatty()):  # huggingface_hub shows its bars anywhere
                disable_progress_bars()
                stack.callback(enable_progress_bars)
            _publish(found, files, _checked_token(token), revision or 'main', private, create_pr, overwrite,
                     commit_message or 'Weights by timm_asr')
        return found


def _checked_token(token: str | None) -> str:
    if constants.HF_HUB_OFFLINE:
        raise BadInput('publishing needs the Hub, and HF_HUB_OFFLINE is set; unset it')
    token = (token or get_token() or '').strip()
    if not token:
        raise BadInput('there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN to one with '
                       f'permission to write ({constants.ENDPOINT}/settings/tokens)')
    return token


def _publish(found: Publication, files: Sequence[File], token: str, revision: str, private: bool, create_pr: bool,
             overwrite: bool, message: str) -> None:
    api, repo_id, step = HfApi(token=token, **LIBRARY), found.repo_id, f'making {found.repo_id}'
    try:
        if create_pr:
            step = f'looking for {repo_id}'
        else:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision != 'main':
                step = f'making the branch {revision}'
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            step = f'reading what {repo_id} has'
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        if private and not info.private:
            raise BadInput(f'{repo_id} exists and is public: --private is for a new repository; change it at '
                           f'{found.url}/settings')
        operations = _operations(found, files, info, overwrite or create_pr)
        found.commit = info.sha
        if not operations:
            return
        step = f'uploading to {repo_id}'
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision,
                                   create_pr=create_pr, parent_commit=info.sha)
    except FAILURES as error:
        told = explained(error, step, repo_id)
        raise type(told)(f'{told}; {_state(api, repo_id, revision)}') from None
    found.commit, found.url, found.changed = commit.oid, commit.pr_url or found.url, True


def _operations(found: Publication, files: Sequence[File], info: ModelInfo, replace: bool) -> list[CommitOperationAdd]:
    """What has to be sent; refuses a repository with other content."""
    there = {file.rfilename: file for file in info.siblings or [] if file.rfilename != _UNTOUCHED}
    new = [file for file in files if file.path not in there or not file.is_same_as(there[file.path])]
    found.kept = sorted(set(there) - {file.path for file in files})
    other = sorted([*found.kept, *(file.path for file in new if file.path in there)])
    if other and new and not replace:
        raise BadInput(f'{found.repo_id} has other content ({_first(other)}): publish under another name, replace '
                       'what has the same name (--overwrite), or propose the change (--create-pr)')
    return [CommitOperationAdd(file.path, file.source) for file in new]


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _state(api: HfApi, repo_id: str, revision: str) -> str:
    """What is there now, asked anew."""
    url = f'{constants.ENDPOINT}/{repo_id}'
    try:
        info = api.model_info(repo_id, revision=revision)
    except FAILURES:
        return f'what is there now could not be read: see {url}'
    names = sorted(file.rfilename for file in info.siblings or [] if file.rfilename != _UNTOUCHED)
    if not names:
        return f'{repo_id} is there, without files; publishing again fills it'
    return f'{repo_id} has {_first(names)} (commit {(info.sha or "")[:12]})'


def describe(found: Publication, dry_run: bool = False) -> Sequence[str]:
    """Lines that tell a person what was published, or would be."""
    width = max(len(path) for path, _ in found.files)
    lines = [f'{path:<{width}}  {size:>12,} bytes' for path, size in found.files]
    lines.append(f'{"in all":<{width}}  {sum(size for _, size in found.files):>12,} bytes')
    if found.left_behind:
        lines.append(f'not published: {", ".join(found.left_behind)}')
    if dry_run:
        lines += ['', found.card.rstrip(), '',
                  f'nothing was sent; without --dry-run this becomes one commit at {found.url}']
        return lines
    if found.kept:
        lines.append(f'there from before, and still there: {", ".join(found.kept)}')
    lines.append(f'published at {found.url} (commit {(found.commit or "")[:12]})' if found.changed else
                 f'{found.url} has all of this already; nothing was changed')
    return lines
