"""Which files of a folder are published: those that its own list names, as they were when it was written."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from huggingface_hub.hf_api import RepoSibling

from ..checkpoints.names import ARGS, CARD, CONFIG, KEY, TRAINABLE, WEIGHTS
from ..checkpoints.provenance import file_sha256, public_yaml
from ..checkpoints.read import is_regular, read_config, read_yaml
from ..errors import BadInput
from .place import files_in


@dataclass(frozen=True)
class File:
    """A file as it is to be published: its path in the repository, and where its content is, or the content itself."""

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def is_same_as(self, remote: RepoSibling) -> bool:
        """Whether a repository has just this content, by the hash that it keeps of it."""
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        if remote.lfs is not None:
            return hashlib.sha256(content).hexdigest() == remote.lfs.sha256
        return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest() == remote.blob_id  # as git names it


def check_weights(folder: Path, config: dict[str, Any], how: str) -> None:
    """Raise ``BadInput`` for weights that are truncated or not those of ``config.json``; ``how`` says what helps."""
    weights = folder / WEIGHTS
    try:
        with safetensors.safe_open(weights, framework='pt') as file:
            file.keys()
    except FileNotFoundError:
        raise BadInput(f'{folder} has no {WEIGHTS}; {how}') from None
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f'{weights} is truncated or damaged ({str(error).rstrip(".")}); {how}') from None
    expected = (config.get(KEY) or {}).get('weights_sha256')
    if expected and (found := file_sha256(weights)) != expected:
        raise BadInput(f'{weights} was altered: its SHA-256 is {found[:12]}..., and {CONFIG} says {expected[:12]}...; '
                       f'{how}')


def collect(folder: Path) -> tuple[list[File], list[str]]:
    """The files of a folder that are published, and the names of those that are not.

    Published is what the list in ``config.json`` names, each a regular file with the hash that the list has, and a
    ``README.md`` of your own. A folder from before there was such a list gives its weights and configurations alone.

    Raises:
        BadInput: The folder is not one of weights, or a file on its list is gone, a link, or has other content.
    """
    again = 'write the folder again'
    if not folder.is_dir():
        raise BadInput(f'{folder} is not a folder')
    config = read_config(folder)
    check_weights(folder, config, again)
    listed: dict[str, str | None] = dict((config.get(KEY) or {}).get('files') or {})
    if not listed:
        listed = {WEIGHTS: None}
        if (folder / TRAINABLE / CONFIG).is_file():
            check_weights(folder / TRAINABLE, read_config(folder / TRAINABLE), again)
            listed |= {f'{TRAINABLE}/{name}': None for name in (CONFIG, WEIGHTS)}
    listed |= {name: None for name in (CONFIG, CARD) if name == CONFIG or (folder / name).exists()}
    files = []
    for name in sorted(listed):
        path = folder / name
        if '..' in Path(name).parts or Path(name).is_absolute() or path.parent.is_symlink() or not is_regular(path):
            raise BadInput(f'{path} is to be published, and is no regular file in this folder; {again}')
        if listed[name] and file_sha256(path) != listed[name]:
            raise BadInput(f'{path} was altered since the folder was written; {again}')
        source: Path | bytes = public_yaml(read_yaml(path)) if name == ARGS else path
        files.append(File(name, source))
    return files, sorted(name for name in files_in(folder) - set(listed) if not name.startswith('.'))
