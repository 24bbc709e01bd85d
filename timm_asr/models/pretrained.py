"""Weights that come with the package: registered from the JSON file beside each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: ``<architecture>.<tag>.safetensors`` and ``.json``: weights, and where they come from.
FOLDER = Path(__file__).resolve().parent.parent / 'weights'
_TUPLES = ('input_size', 'mean', 'std', 'label_names')


def shipped(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What the JSON files of a folder say, by ``<architecture>.<tag>``, for those that have weights beside them.

    Keys of each: ``architecture``, ``tag``, ``sha256`` and ``bytes`` of the weights, ``pretrained_cfg``, ``metrics``
    (top-1 and top-5 in percent), ``provenance`` (versions, commit, recipe, arguments, seed, ...) and ``log``, a row an
    epoch.
    """
    return {path.stem: json.loads(path.read_text(encoding='utf-8')) for path in sorted(folder.glob('*.json'))
            if path.with_suffix('.safetensors').is_file()}


def with_shipped(cfgs: Mapping[str, dict[str, Any]], folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The argument of timm's ``generate_default_cfgs``, with a row for each shipped weight in place of a bare name."""
    rows = dict(cfgs)
    for name, content in shipped(folder).items():
        architecture = content['architecture']
        if architecture in cfgs:
            rows.pop(architecture, None)
            own = {key: tuple(value) if key in _TUPLES else value for key, value in content['pretrained_cfg'].items()}
            rows[name] = {**cfgs[architecture], **own, 'file': str(folder / f'{name}.safetensors')}
    return rows
