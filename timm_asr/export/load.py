"""From the Hub back to models: the trainable form, a check of the hash, and what an owner has published."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from torch import nn

from ..errors import BadInput, Stopped
from .card import TAG
from .contents import check_weights, read_config
from .place import CONFIG, TRAINABLE, WEIGHTS
from .provenance import KEY
from .remote import FAILURES, LIBRARY, download, explained, split_repo_id
from .trainable import create_trainable


class _Place:
    """A folder of weights, here or on the Hub."""

    def __init__(self, name: str | Path, revision: str | None, token: str | bool | None, cache_dir: str | Path | None,
                 force: bool) -> None:
        self.folder: Path | None = None
        self.name = str(name).removeprefix('local-dir:')
        if Path(self.name).is_dir():
            if revision:
                raise BadInput(f'{self.name} is a folder, which has no revision {revision}')
            self.folder = Path(self.name)
            self.again = 'write or copy the folder again'
        else:
            if isinstance(name, Path) or str(name).startswith(('local-dir:', '.', '/')):
                raise BadInput(f'there is no folder {self.name}')
            self.repo_id, self.revision = split_repo_id(self.name, revision)
            self.name = self.repo_id
            self.token, self.cache_dir, self.force = token, cache_dir, force
            self.again = 'fetch it again with force_download=True'

    def fetch(self, file: str, optional: bool = True) -> Path | None:
        """The file, fetched if need be; None if the place has none of this name, or offline the cache."""
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        return download(self.repo_id, file, self.revision, self.token, self.cache_dir, self.force,
                        (lambda: None) if optional else None)

    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        path = self.fetch(CONFIG, optional=False)
        if path is None:
            raise BadInput(f'{self.name} has no {CONFIG}: it is not a place of weights')
        return read_config(path.parent)

    @property
    def offline(self) -> bool:
        return self.folder is None and constants.HF_HUB_OFFLINE

    def weights(self, part: str = '') -> Path:
        """The folder with configuration and weights, of which the hash was compared."""
        prefix = f'{part}/' if part else ''
        config = self.fetch(prefix + CONFIG)
        if config is None or self.fetch(prefix + WEIGHTS) is None:
            where = ' in the cache, and HF_HUB_OFFLINE is set' if self.offline else ''
            raise BadInput(f'{self.name} has no {prefix}{WEIGHTS if config else CONFIG}{where}')
        check_weights(config.parent, read_config(config.parent), self.again)
        return config.parent


def load_trainable(
        name: str | Path,
        *,
        num_classes: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
) -> nn.Module:
    """The unfused network of a publication or a folder, to train further.

    Fused weights are the wrong start for that: their attention is gone. ``save_fused(..., keep_trainable=True)`` writes
    the unfused form into the folder ``trainable`` beside them, and :func:`timm_asr.push_to_hub` publishes it. A network
    from which nothing was folded is its own trainable form.

    Args:
        name: ``OWNER/NAME`` on the Hub (``OWNER/NAME@REVISION``, or with ``hf-hub:``), or a folder.
        num_classes: Give the model a new classifier for this many classes; 0 for none.
        revision: Branch, tag or commit.
        token: For private repositories; by default the one that huggingface_hub finds.
        cache_dir: Another cache than huggingface_hub's.
        force_download: Fetch the files again, whatever the cache has.

    Returns:
        The model in train mode, on the CPU.

    Raises:
        BadInput: There is no such place, it has no trainable form, or the weights were truncated or altered (their
            SHA-256 is not that of their configuration).
        Stopped: The Hub cannot be reached, and the cache does not have the files.
    """
    place = _Place(name, revision, token, cache_dir, force_download)
    content = place.config()
    section = content.get(KEY) or {}
    if section.get('form') == 'trainable' or (section and not _folded(content)):
        folder = place.weights()
    elif place.fetch(f'{TRAINABLE}/{CONFIG}') is not None:
        folder = place.weights(TRAINABLE)
    elif section and place.offline:
        raise Stopped(f'the trainable form of {place.name} is not in the cache, and HF_HUB_OFFLINE is set; fetch it '
                      'once with a network')
    else:
        why = ('the fused network alone, without its trainable form' if section
               else 'a model of which timm_asr knows nothing')
        raise BadInput(f'{place.name} is {why}; timm.create_model loads it for inference')
    model = create_trainable(folder)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model


def _folded(config: dict[str, Any]) -> bool:
    section = config[KEY]
    return section.get('model') != config['architecture'] or bool(section.get('asr'))


def verify_weights(
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
) -> Path:
    """Compare the SHA-256 of fused weights, and of the trainable ones beside them, with what was published.

    Stock timm, which loads the fused ones, does not: huggingface_hub compares the length of what it fetches,
    safetensors refuses a file that is too short, and nobody notices an altered byte.

    Args:
        name: ``OWNER/NAME`` on the Hub, or a folder.
        revision: Branch, tag or commit.
        token: For private repositories.
        cache_dir: Another cache than huggingface_hub's.
        force_download: Fetch the files again first.

    Returns:
        The folder (of the cache) that holds them.

    Raises:
        BadInput: They differ, or the configuration has no hash.
        Stopped: The Hub cannot be reached, and the cache does not have the files.
    """
    place = _Place(name, revision, token, cache_dir, force_download)
    place.config()
    folder = place.weights()
    if not (read_config(folder).get(KEY) or {}).get('weights_sha256'):
        raise BadInput(f'{place.name} has no hash to compare with: it was not written by timm_asr')
    with suppress(Stopped):  # without a network it may not be at hand
        if place.fetch(f'{TRAINABLE}/{CONFIG}') is not None:
            place.weights(TRAINABLE)
    return folder


@dataclass(frozen=True)
class Published:
    """A repository that this package published.

    Args:
        repo_id: ``OWNER/NAME``.
        architecture: What ``timm.create_model('hf-hub:OWNER/NAME')`` makes of it.
        model: The unfused name.
        needs: Packages to import first, none where stock timm is enough.
        metrics: Top-1 and top-5 ``before`` and ``after`` fusing, percent, and more; empty where nothing was measured.
        private: Whether others see it; None where that is not known, offline.
    """

    repo_id: str
    architecture: str
    model: str
    needs: tuple[str, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    private: bool | None = None


def list_published(
        owner: str,
        *,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
) -> list[Published]:
    """What an owner has published with this package, by name.

    With ``HF_HUB_OFFLINE=1``, what of it is in the cache.

    Args:
        owner: User or organisation.
        token: For private repositories; by default the one that huggingface_hub finds.
        cache_dir: Another cache than huggingface_hub's.

    Raises:
        Stopped: The Hub cannot be reached.
    """
    if constants.HF_HUB_OFFLINE:
        found = list(_cached(owner, cache_dir))
    else:
        try:
            infos = [(info.id, info.private) for info in HfApi(token=token, **LIBRARY).list_models(
                author=owner, filter=TAG)]
        except FAILURES as error:
            raise explained(error, f'listing the models of {owner}', owner) from None
        found = []
        for repo_id, private in infos:
            config = download(repo_id, CONFIG, token=token, cache_dir=cache_dir, missing=lambda: None)
            if config is not None:
                found += _published(repo_id, config, private)
    return sorted(found, key=lambda one: one.repo_id)


def _published(repo_id: str, config: Path, private: bool | None) -> Iterator[Published]:
    try:
        content = json.loads(config.read_text(encoding='utf-8'))
        section = content[KEY]
        yield Published(repo_id, content['architecture'], section.get('model') or content['architecture'],
                        tuple(section.get('needs') or ()), section.get('metrics') or {}, private)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # a card with the tag alone


def _cached(owner: str, cache_dir: str | Path | None) -> Iterator[Published]:
    try:
        repos = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return
    for repo in repos:
        if repo.repo_type == 'model' and repo.repo_id.startswith(f'{owner}/') and repo.revisions:
            main = next((r for r in repo.revisions if 'main' in r.refs), None)
            newest = main or max(repo.revisions, key=lambda r: r.last_modified)
            yield from _published(repo.repo_id, newest.snapshot_path / CONFIG, None)
