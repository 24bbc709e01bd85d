"""What can go wrong between this machine and the Hub, said in one sentence."""

import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import BadInput, Stopped
from ..version import __version__

LIBRARY = {'library_name': 'timm_asr', 'library_version': __version__}
# The client's own error derives from that of its HTTP library, whichever that is in its version.
_NETWORK: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)  # type: ignore[assignment]
#: What a call of huggingface_hub raises for reasons outside of this program.
FAILURES: tuple[type[Exception], ...] = (*_NETWORK, RuntimeError, ValueError)
_TOKEN = re.compile(r"\bhf_\w+|(?<=Bearer )[^'\"]+")


def _text(error: BaseException) -> str:
    """First line of what the server, or else the client, says; never a token."""
    said = getattr(error, 'server_message', None) or str(error)
    lines = [line.strip('- .') for line in said.splitlines() if line.strip()] or [type(error).__name__]
    text = ': '.join(lines) if isinstance(error, ValueError) else lines[0]
    return _TOKEN.sub('...', text)[:300].rstrip('.: ')


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error stands for; None if no answer came."""
    return getattr(getattr(error, 'response', None), 'status_code', None)


def explained(error: BaseException, what: str, repo_id: str) -> BadInput | Stopped:
    """One sentence for what huggingface_hub raised, and what was being done: 'fetching config.json of OWNER/NAME'."""
    hub = constants.ENDPOINT
    cause = error.__cause__  # the client wraps what went wrong with a single file
    wrapped = (type(error) is RuntimeError or str(error).startswith('Force download failed')
               or (isinstance(error, LocalEntryNotFoundError) and status_of(cause) is not None))
    if wrapped and isinstance(cause, FAILURES):
        error = cause
    status, text = status_of(error), _text(error)
    if isinstance(error, OfflineModeIsEnabled):
        return BadInput(f'{what}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it')
    if isinstance(error, LocalEntryNotFoundError):
        return Stopped(
            f'{what}: it is not in the cache ({constants.HF_HUB_CACHE}), and '
            f'{"HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} cannot be reached"}; fetch it once '
            'with a network')
    if isinstance(error, RevisionNotFoundError):
        return BadInput(f'{what}: {repo_id} has no such revision')
    if isinstance(error, EntryNotFoundError):
        return BadInput(f'{what}: {repo_id} has no such file ({text})')
    if isinstance(error, RepositoryNotFoundError):
        return BadInput(f'{what}: there is no {repo_id} at {hub}, or it is private and the token may not see it')
    if status == 401:
        return BadInput(f'{what}: {hub} does not accept the token (401: {text}); it is wrong or has expired: log in '
                        'again by `hf auth login`, or set HF_TOKEN')
    if status == 403:
        return BadInput(f'{what}: the token may not do that (403: {text}); it needs permission to write to {repo_id}')
    if status is not None and status < 500 and status != 429:
        return Stopped(f'{what}: {hub} refused it ({status}: {text})')
    if status is not None:
        return Stopped(f'{what}: {hub} answered {status} ({text}); try again later')
    if isinstance(error, OSError) and error.filename:
        return BadInput(f'{what}: {error.filename} cannot be read or written ({error.strerror})')
    if isinstance(error, _NETWORK):
        return Stopped(f'{what}: {hub} cannot be reached, or the connection broke ({text}); try again')
    return (BadInput if isinstance(error, ValueError) else Stopped)(f'{what}: {text}')


def split_repo_id(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """``[hf-hub:]OWNER/NAME[@REVISION]`` as repository and revision; ``BadInput`` for anything else."""
    repo_id, at, tagged = name.removeprefix('hf-hub:').removeprefix('hf_hub:').partition('@')
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count('/') == 1 and not (at and not tagged)
    except HFValidationError:
        valid = False
    if not valid:
        raise BadInput(f'{name!r} does not name a repository: it takes OWNER/NAME, of letters, digits, -, _ and .')
    return repo_id, revision or tagged or None


def download(repo_id: str, file: str, revision: str | None = None, token: str | bool | None = None,
             cache_dir: str | Path | None = None, force: bool = False) -> Path:
    """A file of a repository, from the cache if it is there and current."""
    try:
        return Path(hf_hub_download(
            repo_id, file, revision=revision, token=token, cache_dir=cache_dir, force_download=force, **LIBRARY))
    except FAILURES as error:
        raise explained(error, f'fetching {file} of {repo_id}', repo_id) from None
