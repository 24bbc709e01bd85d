"""What a name names: a registered model, a name on the Hub, a folder, a file, or several of them."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from timm.models import get_arch_pretrained_cfgs, is_model, list_models

from ..errors import BadInput, nearest
from .names import WEIGHT_SUFFIXES
from .read import is_folder_of_weights, read_text

HUB_PREFIXES = ('hf-hub:', 'hf_hub:')
FOLDER_PREFIX = 'local-dir:'


def source_of(name: str) -> str:
    """What a name names: ``hub``, ``folder``, ``file``, ``registry``, or ``''`` for nothing that is known."""
    if name.startswith(HUB_PREFIXES):
        return 'hub'
    if name.startswith(FOLDER_PREFIX) or is_folder_of_weights(name):
        return 'folder'
    if is_model(name):
        return 'registry'
    return 'file' if Path(name).is_file() else ''


def check_model_name(name: str) -> None:
    """Raise ``BadInput``, with the nearest names, unless the registry knows this name and its pretrained tag."""
    architecture, _, tag = name.partition('.')
    if not is_model(name):
        near = ', '.join(nearest(architecture, list_models(), count=3))
        raise BadInput(f'unknown model {name!r}' + (f'; the nearest names are {near}' if name else ''))
    known = [full.partition('.')[2] for full in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in known:
        tags = [t for t in known if t]
        hint = f'its tags are {", ".join(nearest(tag, tags, count=5))}' if tags else 'it has none'
        raise BadInput(f'unknown pretrained tag {tag!r} of {architecture}: {hint}')


def expand_names(name: str, pretrained: bool = False, exclude: Sequence[str] = ()) -> list[str] | None:
    """The models that a wildcard, ``all`` or a text file (one name a line) stands for; None for a single model.

    With ``pretrained`` wildcards and ``all`` give names with a pretrained tag only; ``exclude`` has wildcards that
    are left out of ``all``. ``BadInput`` says that nothing matches, or that a file has no name or an unknown one.
    """
    if source_of(name) in ('hub', 'folder', 'registry'):
        return None
    if name == 'all':
        return list_models(pretrained=pretrained, exclude_filters=list(exclude))
    path = Path(name)
    if path.is_file() and not name.endswith(WEIGHT_SUFFIXES):
        return read_model_list(path)
    if any(c in name for c in '*?['):
        found = list_models(name, pretrained=pretrained) or [
            full for full in list_models(pretrained=pretrained) if fnmatch(full.partition('.')[0], name)]
        if not found:
            extra = ' with pretrained weights' if pretrained and list_models(name) else ''
            raise BadInput(f'no model{extra} matches {name!r}; `timm.list_models()` lists what there is')
        return found
    return None


def read_model_list(path: str | Path) -> list[str]:
    """The names in a text file, one a line; blank lines and those that start with # are skipped."""
    lines = read_text(Path(path)).splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.startswith('#')]
    if not names:
        raise BadInput(f'the model list {path} is empty')
    for name in names:
        if not source_of(name):
            check_model_name(name)
    return names
