"""From a folder of weights to a repository on the Hub: one commit, checked afterwards, or nothing."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn

from ..errors import BadInput, Stopped
from .card import model_card
from .contents import CARD, File, collect, is_own
from .place import CONFIG, WEIGHTS
from .provenance import KEY
from .remote import FAILURES, LIBRARY, asking, download, explained, split_repo_id, status_of
from .save import save_fused

_UNTOUCHED = '.gitattributes'  # all that a new repository has


@dataclass
class Publication:
    """What :func:`push_to_hub` did, or with ``dry_run`` would do.

    Args:
        repo_id: The repository.
        url: Of the repository, or of the pull request.
        files: Path and size in bytes of every file that is published.
        left_behind: Files of the folder that are not.
        commit: Of the repository where it has these files; None after a dry run.
        changed: Whether a commit was made: not if all was there already.
    """

    repo_id: str
    url: str
    files: list[tuple[str, int]]
    left_behind: list[str] = field(default_factory=list)
    commit: str | None = None
    changed: bool = False


def push_to_hub(
        model_or_folder: nn.Module | str | os.PathLike,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        dry_run: bool = False,
        overwrite: bool = False,
        token: str | None = None,
        license: str | None = None,
        plain: str | os.PathLike | None = None,
        keep_trainable: bool = False,
        commit_message: str | None = None,
        progress: bool = True,
) -> Publication:
    """Publish fused weights on the Hugging Face Hub, with a model card.

    Everything goes in one commit. Whatever fails, a repository that was there is as it was, and one that this call
    made is removed again. If the repository has all files already, nothing is changed. After the upload the hashes that
    the Hub reports are compared with those of the files. Only the files that :func:`timm_asr.save_fused` and
    ``train.py`` write are published, never a checkpoint or another pickle.

    Args:
        model_or_folder: A model, which :func:`timm_asr.save_fused` fuses first; or a folder that it wrote.
        repo_id: ``OWNER/NAME``; made if absent.
        private: Make the new repository private; refused for one that is public.
        revision: Branch to commit to, made from ``main`` if absent; ``main`` by default.
        create_pr: Open a pull request instead of changing the branch.
        dry_run: Only say what would be published; the Hub is not asked.
        overwrite: Replace files of the same names with other content in a repository that was there.
        token: With permission to write; by default the one that huggingface_hub finds (``HF_TOKEN``, or
            ``hf auth login``). It is neither printed nor stored.
        license: As the Hub names it, ``apache-2.0``; none is stated by default.
        plain: Folder of the plain backbone's own run, whose accuracy the card then shows beside the model's.
        keep_trainable: Of a model, publish the unfused form as well.
        commit_message: Title of the commit.
        progress: Show progress bars, if stderr is a terminal; ``HF_HUB_DISABLE_PROGRESS_BARS`` has the last word.

    Returns:
        What was published, and where.

    Raises:
        ValueError: The model cannot be saved, see :func:`timm_asr.save_fused`.
        BadInput: The folder, the name, the token or the licence cannot work, or the repository has other content.
        Stopped: The Hub cannot be reached or refuses; the sentence says what is left there.
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
        if not any(file.path == CARD for file in files):
            card = model_card(folder, repo_id, license=license, plain=Path(plain) if plain else None)
            files.insert(0, File(CARD, card.encode()))
        elif license or plain:
            raise BadInput(f'{folder / CARD} is published as it stands, so --license and --plain have no place to go: '
                           'write it there, or remove the file')
        found = Publication(repo_id, f'{constants.ENDPOINT}/{repo_id}', [(f.path, f.size) for f in files], left)
        if dry_run:
            return found
        # huggingface_hub shows its bars anywhere, unless its own variable says otherwise.
        asked = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
        if not asked and not are_progress_bars_disabled() and not (progress and sys.stderr.isatty()):
            disable_progress_bars()
            stack.callback(enable_progress_bars)
        upload = _Upload(repo_id, revision, files, _checked_token(token))
        found.commit, found.url, found.changed = upload.run(
            private, create_pr, overwrite, commit_message or 'Weights by timm_asr')
        return found


def _checked_token(token: str | None) -> str:
    if constants.HF_HUB_OFFLINE:
        raise BadInput('publishing needs the Hub, and HF_HUB_OFFLINE is set; unset it')
    token = (token or get_token() or '').strip()
    if not token:
        raise BadInput('there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN to one with '
                       f'permission to write ({constants.ENDPOINT}/settings/tokens)')
    return token


@dataclass
class _State:
    commit: str | None
    private: bool
    files: dict[str, RepoSibling]


class _Upload:
    """One publication: what the repository has, the commit, and how to leave no trace of a failed one."""

    def __init__(self, repo_id: str, revision: str | None, files: list[File], token: str) -> None:
        self.repo_id, self.revision, self.files, self.token = repo_id, revision or 'main', files, token
        self.api = HfApi(token=token, **LIBRARY)
        self.made_repo = self.made_branch = self.sent = False
        self.url = f'{constants.ENDPOINT}/{repo_id}'

    def run(self, private: bool, create_pr: bool, overwrite: bool, message: str) -> tuple[str | None, str, bool]:
        """Returns the commit, the URL and whether anything was changed."""
        with asking(f'looking for {self.repo_id}', self.repo_id):
            state = self._state(self.revision)
            base = state
            if state is None and self.revision != 'main' and (base := self._state('main')) is None:
                raise BadInput(f'{self.repo_id} does not exist, so --revision {self.revision} has nothing to start '
                               'from; publish to main first')
        if base is not None and private and not base.private:
            raise BadInput(f'{self.repo_id} exists and is public: --private is for a new repository; change it at '
                           f'{self.url}/settings')
        if state is not None:
            self._adopt_date(state)
            if self._has_all(state):
                return state.commit, self.url, False
            if create_pr:
                if proposed := self._proposed():
                    return (*proposed, False)
            elif not overwrite:
                self._refuse_other_content(state)
        elif create_pr:
            raise BadInput(f'{self.repo_id} does not exist, so a pull request has nothing to change; leave out '
                           '--create-pr')
        try:
            if state is None:
                self._make(private, new_repo=base is None)
            commit, url = self._commit(create_pr, message, base)
        except BaseException as error:
            done = self._after_failure(error, create_pr)
            if done is None:
                raise
            commit, url = done, self.url
        return commit, url, True

    def _state(self, revision: str) -> _State | None:
        try:
            info = self.api.repo_info(self.repo_id, revision=revision, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        return _State(info.sha, bool(info.private), {file.rfilename: file for file in info.siblings or []})

    def _differing(self, state: _State) -> list[str]:
        return [file.path for file in self.files
                if file.path not in state.files or not file.is_same_as(state.files[file.path])]

    def _has_all(self, state: _State | None) -> bool:
        return state is not None and not self._differing(state)

    def _refuse_other_content(self, state: _State) -> None:
        if not set(state.files) - {_UNTOUCHED}:
            return
        ours = {file.path for file in self.files}
        other = [path for path in self._differing(state) if path in state.files]
        other = other or sorted(set(state.files) - ours - {_UNTOUCHED})
        if not other:  # all that is there is ours, and some files are missing
            return
        more = f' and {len(other) - 3} more' if len(other) > 3 else ''
        raise BadInput(
            f'{self.repo_id} has other content ({", ".join(other[:3])}{more}): publish under another name, replace '
            'what has the same name (--overwrite), or propose the change (--create-pr)')

    def _adopt_date(self, state: _State) -> None:
        """Take over the published ``config.json`` if ours differs in the time of writing alone."""
        for i, file in enumerate(self.files):
            if file.path.endswith(CONFIG) and file.path in state.files and not file.is_same_as(state.files[file.path]):
                path = download(self.repo_id, file.path, state.commit, self.token)
                assert path is not None
                remote = path.read_bytes()
                if _undated(remote) == _undated(file.content()):
                    self.files[i] = File(file.path, remote)

    def _proposed(self) -> tuple[str | None, str] | None:
        """Commit and URL of an open pull request with just these files."""
        with asking(f'reading the pull requests of {self.repo_id}', self.repo_id):
            for one in self.api.get_repo_discussions(
                    self.repo_id, discussion_type='pull_request', discussion_status='open'):
                state = self._state(f'refs/pr/{one.num}')
                if state is not None and self._has_all(state):
                    return state.commit, f'{self.url}/discussions/{one.num}'
        return None

    def _make(self, private: bool, new_repo: bool) -> None:
        with asking(f'making {self.repo_id}' if new_repo else f'making the branch {self.revision}', self.repo_id):
            if new_repo:
                self.made_repo = True  # before the answer, which an interrupt may keep from us
                try:
                    self.api.create_repo(self.repo_id, private=private)
                except FAILURES as error:
                    self.made_repo = status_of(error) is None  # no answer: perhaps it was made
                    raise
            else:
                self.api.create_branch(self.repo_id, branch=self.revision)
                self.made_branch = True

    def _commit(self, create_pr: bool, message: str, base: _State | None) -> tuple[str | None, str]:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file.path, file.source) for file in self.files]
        if base is not None and WEIGHTS in self._differing(base):
            operations += [CommitOperationDelete(path) for path in self._stale(base)]
        with asking(f'uploading to {self.repo_id}', self.repo_id):
            self.sent = True
            try:
                info = self.api.create_commit(
                    self.repo_id, operations, commit_message=message, revision=self.revision, create_pr=create_pr,
                    parent_commit=base.commit if base is not None else None)
            except FAILURES as error:
                self.sent = status_of(error) is None  # no answer: perhaps it is there
                raise
        with asking(f'checking what {self.repo_id} has now', self.repo_id):
            state = self._state((info.pr_revision if create_pr else None) or info.oid)
        if state is None or (differing := self._differing(state)):
            what = 'the commit' if state is None else ', '.join(differing)
            raise Stopped(f'{self.repo_id} does not have what was uploaded ({what}); publish again')
        return info.oid, info.pr_url or self.url

    def _stale(self, state: _State) -> list[str]:
        """Files that came with other weights, and would be taken for something of these."""
        ours = {file.path for file in self.files}
        return [path for path in state.files if path not in ours and is_own(path)]

    def _after_failure(self, error: BaseException, create_pr: bool) -> str | None:
        """Undo what this call made; the commit, if it was made after all and only the answer was lost."""
        if not isinstance(error, Exception):
            self._undo()
            return None
        try:
            state = None if create_pr else self._state(self.revision)
        except FAILURES:
            state = None
        if self._has_all(state):
            assert state is not None
            return state.commit
        kind = type(error) if isinstance(error, BadInput | Stopped) else None
        left = self._undo()
        if kind is None or not left:
            return None
        raise kind(f'{error}; {left}') from None

    def _undo(self) -> str:
        """Remove what this call made; returns what a reader should know."""
        if not (self.made_repo or self.made_branch):
            return f'see what is there at {self.url}' if self.sent else 'nothing was changed there'
        what = self.repo_id if self.made_repo else f'the branch {self.revision}'
        try:
            if self.made_branch:
                self.api.delete_branch(self.repo_id, branch=self.revision)
            else:
                state = self._state('main')
                if state is None:
                    return 'nothing was changed there'
                if set(state.files) - {_UNTOUCHED}:
                    return f'see what is there at {self.url}'
                self.api.delete_repo(self.repo_id)
        except FAILURES as error:
            why = explained(error, 'removing it', self.repo_id)
            return f'{what}, which this call had made, is still there, empty ({why}): remove it at {self.url}/settings'
        return f'{what}, which this call had made, was removed again'


def _undated(config: bytes) -> object:
    try:
        content = json.loads(config)
        return {**content, KEY: {**content.get(KEY, {}), 'created': None}}
    except (ValueError, TypeError, AttributeError):
        return config


def describe(found: Publication, dry_run: bool = False) -> Sequence[str]:
    """Lines that tell a person what was published, or would be."""
    width = max(len(path) for path, _ in found.files)
    lines = [f'{path:<{width}}  {size:>12,} bytes' for path, size in found.files]
    lines.append(f'{"in all":<{width}}  {sum(size for _, size in found.files):>12,} bytes')
    if found.left_behind:
        lines.append(f'not published: {", ".join(found.left_behind)}')
    if dry_run:
        lines.append(f'nothing was sent; without --dry-run this becomes one commit at {found.url}')
    elif found.changed:
        lines.append(f'published at {found.url} (commit {(found.commit or "")[:12]}), hashes compared')
    else:
        lines.append(f'{found.url} has all of this already; nothing was changed')
    return lines
