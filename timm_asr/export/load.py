"""From the Hub back to models: the trainable form, and what an owner has published."""

from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo
from torch import nn

from ..checkpoints.names import CONFIG, KEY, TRAINABLE, WEIGHTS
from ..checkpoints.read import read_config
from ..checkpoints.trainable import create_trainable
from ..errors import BadInput
from .card import TAG
from .place import check_weights
from .remote import FAILURES, LIBRARY, download, explained, split_repo_id


def load_trainable(name: str | Path, *, num_classes: int | None = None, revision: str | None = None,
                   token: str | bool | None = None, cache_dir: str | Path | None = None,
                   force_download: bool = False) -> nn.Module:
    """The network of a publication or a folder as it was before folding, to train further.

    ::

        model = load_trainable('OWNER/NAME', num_classes=7)

    Folded weights are the wrong start for that: their attention is gone. ``save_fused(..., keep_trainable=True)``
    writes the trainable form into the folder ``trainable`` beside them, and :func:`timm_asr.push_to_hub` publishes it.
    A network from which nothing was folded is its own trainable form. Of the configuration only the name of a
    registered architecture and plain arguments are used; the weights come from the same place.

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
    local = Path(str(name).removeprefix('local-dir:'))
    if local.is_dir():
        if revision:
            raise BadInput(f'{local} is a folder, which has no revision {revision}')
        place, again, fetch = str(local), 'write or copy the folder again', local.joinpath
    elif isinstance(name, Path) or str(name).startswith(('local-dir:', '.', '/')):
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
