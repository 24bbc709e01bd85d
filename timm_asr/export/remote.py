"""From the Hub back to models, what an owner has published, and what can go wrong on the way, in one sentence."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo, constants, errors, hf_hub_download
from torch import nn

from ..checkpoints.find import FOLDER_PREFIX
from ..checkpoints.names import CONFIG, KEY, TRAINABLE, WEIGHTS
from ..checkpoints.open import create_trainable
from ..checkpoints.read import read_config
from ..errors import BadInput, Stopped
from ..version import __version__
from .card import TAG
from .place import check_weights

LIBRARY = {'library_name': 'timm_asr', 'library_version': __version__}
# The client's own error derives from that of its HTTP library, whichever that is in its version.
_NETWORK: tuple[type[Exception], ...] = (OSError, *errors.HfHubHTTPError.__bases__)  # type: ignore[assignment]
#: What a call of huggingface_hub raises for reasons outside of this program.
FAILURES: tuple[type[Exception], ...] = (*_NETWORK, RuntimeError, ValueError)
_TOKEN = re.compile(r"\bhf_\w+|(?<=Bearer )[^'\"]+")


def _text(error: BaseException) -> str:
    """First line of what the server, or else the client, says; never a token."""
    said = getattr(error, 'server_message', None) or str(error)
    lines = [line.strip('- .') for line in said.splitlines() if line.strip()] or [type(error).__name__]
    text = ': '.join(lines) if isinstance(error, ValueError) else lines[0]
    return _TOKEN.sub('...', text)[:300].rstrip('.: ')


def explained(error: BaseException, what: str, repo_id: str) -> BadInput | Stopped:
    """One sentence for what huggingface_hub raised, and what was being done: 'fetching config.json of OWNER/NAME'."""
    hub, cause = constants.ENDPOINT, error.__cause__
    if isinstance(cause, FAILURES) and (
            type(error) is RuntimeError or str(error).startswith('Force download failed')
            or (isinstance(error, errors.LocalEntryNotFoundError) and getattr(cause, 'response', None) is not None)):
        error = cause  # the client wraps what went wrong with a single file
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    text, file = _text(error), getattr(error, 'filename', None)
    kind, said = next((kind, said) for true, kind, said in (
        (isinstance(error, errors.LocalEntryNotFoundError), Stopped,
         f'it is not in the cache ({constants.HF_HUB_CACHE}), and '
         f'{"HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} cannot be reached"}; fetch it once with a '
         'network'),
        (isinstance(error, errors.RevisionNotFoundError), BadInput, f'{repo_id} has no such revision'),
        (isinstance(error, errors.EntryNotFoundError), BadInput, f'{repo_id} has no such file ({text})'),
        (isinstance(error, errors.RepositoryNotFoundError), BadInput,
         f'there is no {repo_id} at {hub}, or it is private and the token may not see it'),
        (status == 401, BadInput,
         f'{hub} does not accept the token (401: {text}); it is wrong or has expired: log in again by `hf auth login`, '
         'or set HF_TOKEN'),
        (status == 403, BadInput,
         f'the token may not do that (403: {text}); it needs permission to write to {repo_id}'),
        (status is not None and status < 500 and status != 429, Stopped, f'{hub} refused it ({status}: {text})'),
        (status is not None, Stopped, f'{hub} answered {status} ({text}); try again later'),
        (isinstance(error, OSError) and file, BadInput,
         f'{file} cannot be read or written ({getattr(error, "strerror", None)})'),
        (isinstance(error, _NETWORK), Stopped,
         f'{hub} cannot be reached, or the connection broke ({text}); try again'),
        (True, BadInput if isinstance(error, ValueError) else Stopped, text)) if true)
    return kind(f'{what}: {said}')


def split_repo_id(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """``[hf-hub:]OWNER/NAME[@REVISION]`` as repository and revision; ``BadInput`` for anything else."""
    match = re.fullmatch(r'(?:hf[-_]hub:)?([\w.-]+/[\w.-]+)(?:@(.+))?', name)
    if not match:
        raise BadInput(f'{name!r} does not name a repository: it takes OWNER/NAME, of letters, digits, -, _ and .')
    return match[1], revision or match[2]


def download(repo_id: str, file: str, **kwargs: Any) -> Path:
    """A file of a repository, from the cache if it is there and current; keywords are those of huggingface_hub."""
    try:
        return Path(hf_hub_download(repo_id, file, **kwargs, **LIBRARY))
    except FAILURES as error:
        raise explained(error, f'fetching {file} of {repo_id}', repo_id) from None


def load_trainable(name: str | Path, *, num_classes: int | None = None, revision: str | None = None,
                   token: str | bool | None = None, cache_dir: str | Path | None = None,
                   force_download: bool = False) -> nn.Module:
    """The network of a publication or a folder as it was before folding, to train further.

    ::

        model = load_trainable('OWNER/NAME', num_classes=7)

    Folded weights train on as a plain network, without attention. ``save_fused(..., keep_trainable=True)``
    writes the trainable form into the folder ``trainable`` beside them, and :func:`timm_asr.push_to_hub` publishes it.
    A network from which nothing was folded is its own trainable form. Of the configuration only the name of a
    registered architecture and plain arguments are used; the weights come from the same place.

    Args:
        name: ``OWNER/NAME`` on the Hub (``OWNER/NAME@REVISION``, or with ``hf-hub:``), or a folder.
        num_classes: Another count than that of the weights gives the model a new classifier; 0 for none.
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
    local = Path(str(name).removeprefix(FOLDER_PREFIX))
    if local.is_dir():
        if revision:
            raise BadInput(f'{local} is a folder, which has no revision {revision}')
        place, again, fetch = str(local), 'write or copy the folder again', local.joinpath
    elif isinstance(name, Path) or str(name).startswith((FOLDER_PREFIX, '.', '/')):
        raise BadInput(f'there is no folder {name}')
    else:
        place, revision = split_repo_id(str(name), revision)
        again = 'fetch it again with force_download=True'
        fetch = partial(download, place, revision=revision, token=token, cache_dir=cache_dir,
                        force_download=force_download)
    config = read_config(fetch(CONFIG).parent)
    section = config.get(KEY) or {}
    if not section:
        raise BadInput(f'{place} is a model of which timm_asr knows nothing; timm.create_model loads it for inference')
    part = ''
    if section.get('form') != 'trainable' and (section.get('model') != config['architecture'] or section.get('asr')):
        # Something was folded. The trainable form of these weights, and no other's, lies beside them, if the list has
        # it; older folders have no list: look, or ask.
        part = f'{TRAINABLE}/'
        listed = section.get('files') is None or part + WEIGHTS in section['files']
        if not listed or (local.is_dir() and not fetch(part + CONFIG).is_file()):
            raise BadInput(f'{place} is the folded network alone, without its trainable form; timm.create_model loads '
                           'it for inference')
    fetch(part + WEIGHTS)
    folder = fetch(part + CONFIG).parent
    check_weights(folder, read_config(folder), again)
    model = create_trainable(folder)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model


def list_published(owner: str, *, token: str | bool | None = None) -> list[ModelInfo]:
    """What an owner, a user or organisation, has published with this package, as huggingface_hub lists it.

    ``token`` is that of :func:`load_trainable`. ``Stopped``: the Hub cannot be reached.
    """
    try:
        return list(HfApi(token=token, **LIBRARY).list_models(author=owner, filter=TAG))
    except FAILURES as error:
        raise explained(error, f'listing the models of {owner}', owner) from None
