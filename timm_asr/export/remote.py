"""What can go wrong between this machine and the Hub, said in one sentence."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, hf_hub_download
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import BadInput, Stopped
from ..version import __version__

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


def _status_of(error: BaseException | None) -> int | None:
    return getattr(getattr(error, 'response', None), 'status_code', None)


def explained(error: BaseException, what: str, repo_id: str) -> BadInput | Stopped:
    """One sentence for what huggingface_hub raised, and what was being done: 'fetching config.json of OWNER/NAME'."""
    hub, cause = constants.ENDPOINT, error.__cause__
    if isinstance(cause, FAILURES) and (
            type(error) is RuntimeError or str(error).startswith('Force download failed')
            or (isinstance(error, errors.LocalEntryNotFoundError) and _status_of(cause) is not None)):
        error = cause  # the client wraps what went wrong with a single file
    status, text, file = _status_of(error), _text(error), getattr(error, 'filename', None)
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
    repo_id, at, tagged = re.sub('^hf[-_]hub:', '', name).partition('@')
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count('/') == 1 and bool(tagged or not at)
    except HFValidationError:
        valid = False
    if not valid:
        raise BadInput(f'{name!r} does not name a repository: it takes OWNER/NAME, of letters, digits, -, _ and .')
    return repo_id, revision or tagged or None


def download(repo_id: str, file: str, **kwargs: Any) -> Path:
    """A file of a repository, from the cache if it is there and current; keywords are those of huggingface_hub."""
    try:
        return Path(hf_hub_download(repo_id, file, **kwargs, **LIBRARY))
    except FAILURES as error:
        raise explained(error, f'fetching {file} of {repo_id}', repo_id) from None
