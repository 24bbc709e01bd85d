"""From a folder of weights to a repository on the Hub: one commit, in which nothing is ever deleted."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.hf_api import RepoSibling
from torch import nn

from ..checkpoints.names import ARGS, CARD, CONFIG, KEY
from ..checkpoints.provenance import file_sha256, public_yaml
from ..checkpoints.read import is_regular, read_config, read_yaml
from ..errors import BadInput
from .card import model_card
from .place import check_weights, files_in
from .remote import FAILURES, LIBRARY, explained, split_repo_id
from .save import save_fused

_UNTOUCHED = '.gitattributes'  # all that a new repository has


@dataclass
class Publication:
    """What :func:`push_to_hub` did, or with ``dry_run`` would do.

    Attributes:
        files: Path and size in bytes of every file that is published.
        left_behind: Files of the folder that are not.
        kept: Files of the repository that are not of this publication, and stay there.
        commit: Of the repository where it has these files; None after a dry run.
        changed: Whether a commit was made: not if all was there already.
        card: The model card.
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
                dry_run: bool = False, overwrite: bool = False, token: str | None = None, license: str | None = None,
                dataset_name: str | None = None, keep_trainable: bool = False) -> Publication:
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
        dry_run: Only say what would be published, and write the card; the Hub is not asked.
        overwrite: Replace files of the same names with other content in a repository that was there.
        token: With permission to write; by default huggingface_hub's. It is neither printed nor stored.
        license: As the Hub names it, ``apache-2.0``; none is stated by default.
        dataset_name: The data set as the Hub names it, for the card's head; by default the run's, if not a folder's.
        keep_trainable: Of a model, publish the trainable form as well.

    Raises:
        ValueError: The model cannot be saved, see :func:`timm_asr.save_fused`.
        BadInput: The folder, the name, the token or the licence cannot work, or the repository has other content.
        Stopped: The Hub cannot be reached or refuses; the sentence says what is there now.
    """
    repo_id, revision = split_repo_id(repo_id)
    if revision:
        raise BadInput(f'everything is published on main; leave out @{revision}')
    with TemporaryDirectory() as aside:
        if isinstance(model_or_folder, nn.Module):
            folder = save_fused(model_or_folder, Path(aside) / 'folder', keep_trainable=keep_trainable)
        else:
            folder = Path(model_or_folder)
        files, left = _collect(folder)
        if CARD not in [file.path_in_repo for file in files]:
            card = model_card(folder, repo_id, license, dataset_name)
            files.insert(0, CommitOperationAdd(CARD, card.encode()))
        elif license or dataset_name:
            raise BadInput(f'{folder / CARD} is published as it stands, so --license and --dataset-name have no place '
                           'to go: write it there, or remove the file')
        else:
            card = (folder / CARD).read_text(encoding='utf-8', errors='replace')
        found = Publication(repo_id, f'{constants.ENDPOINT}/{repo_id}',
                            [(file.path_in_repo, file.upload_info.size) for file in files], left, card=card)
        if not dry_run:
            _publish(found, files, token, private, overwrite)
        return found


def _publish(found: Publication, files: Sequence[CommitOperationAdd], token: str | None, private: bool,
             overwrite: bool) -> None:
    token = (token or get_token() or '').strip()
    if not token:
        raise BadInput('there is no token for the Hub: log in by `hf auth login`, or set HF_TOKEN to one with '
                       f'permission to write ({constants.ENDPOINT}/settings/tokens)')
    api, repo_id, step = HfApi(token=token, **LIBRARY), found.repo_id, f'making {found.repo_id}'
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        step = f'reading what {repo_id} has'
        info = api.model_info(repo_id, files_metadata=True)
        if private and not info.private:
            raise BadInput(f'{repo_id} exists and is public: --private is for a new repository; change it at '
                           f'{found.url}/settings')
        there = {file.rfilename: file for file in info.siblings or [] if file.rfilename != _UNTOUCHED}
        new = [file for file in files if file.path_in_repo not in there or not _is_same(file, there[file.path_in_repo])]
        found.kept, found.commit = sorted(set(there) - {path for path, _ in found.files}), info.sha
        other = sorted([*found.kept, *(file.path_in_repo for file in new if file.path_in_repo in there)])
        if other and new and not overwrite:
            raise BadInput(f'{repo_id} has other content ({_first(other)}): publish under another name, or replace '
                           'what has the same name (--overwrite)')
        if not new:
            return
        step = f'uploading to {repo_id}'
        commit = api.create_commit(repo_id, new, commit_message='Weights by timm_asr', parent_commit=info.sha)
    except FAILURES as error:
        told = explained(error, step, repo_id)
        raise type(told)(f'{told}; {_state(api, repo_id)}') from None
    found.commit, found.changed = commit.oid, True


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _state(api: HfApi, repo_id: str) -> str:
    try:
        info = api.model_info(repo_id)
    except FAILURES:
        return f'what is there now could not be read: see {constants.ENDPOINT}/{repo_id}'
    names = sorted(file.rfilename for file in info.siblings or [] if file.rfilename != _UNTOUCHED)
    if not names:
        return f'{repo_id} is there, without files; publishing again fills it'
    return f'{repo_id} has {_first(names)} (commit {(info.sha or "")[:12]})'


def _collect(folder: Path) -> tuple[list[CommitOperationAdd], list[str]]:
    """The files of a folder that are published, and the names of those that are not.

    Published is what the list in ``config.json`` names, each a regular file with the hash that the list has, and a
    ``README.md`` of your own.
    """
    again, folder = 'write the folder again', folder.resolve()
    config = read_config(folder)
    check_weights(folder, config, again)
    listed: dict[str, str | None] = dict((config.get(KEY) or {}).get('files') or {})
    if not listed:
        raise BadInput(f'{folder} has no list of its files: export it again (timm-asr export {folder} --output NEW)')
    listed |= {name: None for name in (CONFIG, CARD) if (folder / name).exists()}
    for name in listed:
        path = folder / name
        if not is_regular(path) or path.resolve() != path or folder not in path.parents:  # through a link, say
            raise BadInput(f'{path} is to be published, and is no regular file in this folder; {again}')
        if listed[name] and file_sha256(path) != listed[name]:
            raise BadInput(f'{path} was altered since the folder was written; {again}')
    made: dict[str, bytes] = {}
    if ARGS in listed:  # without what is private in it, under the hash of what is left
        made[ARGS] = public_yaml(read_yaml(folder / ARGS))
        config[KEY]['files'][ARGS] = hashlib.sha256(made[ARGS]).hexdigest()
        made[CONFIG] = json.dumps(config, indent=2).encode()
    files = [CommitOperationAdd(name, made.get(name, folder / name)) for name in sorted(listed)]
    return files, sorted(name for name in files_in(folder) - set(listed) if not name.startswith('.'))


def _is_same(file: CommitOperationAdd, remote: RepoSibling) -> bool:
    """Whether a repository has just this content, by the hash that it keeps of it."""
    if remote.lfs is not None:
        return file.upload_info.sha256.hex() == remote.lfs.sha256
    with file.as_file() as opened:
        content = opened.read()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest() == remote.blob_id  # as git names it


def describe(found: Publication, dry_run: bool = False) -> Sequence[str]:
    """Lines that tell a person what was published, or would be."""
    width = max(len(path) for path, _ in found.files)
    rows = [*found.files, ('in all', sum(size for _, size in found.files))]
    lines = [f'{path:<{width}}  {size:>12,} bytes' for path, size in rows]
    lines += [f'{what}: {", ".join(names)}' for what, names in (
        ('not published', found.left_behind), ('there from before, and still there', found.kept)) if names]
    if dry_run:
        return [*lines, '', found.card.rstrip(), '',
                f'nothing was sent; without --dry-run this becomes one commit at {found.url}']
    return [*lines, f'published at {found.url} (commit {(found.commit or "")[:12]})' if found.changed else
            f'{found.url} has all of this already; nothing was changed']
