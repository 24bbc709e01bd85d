"""What belongs into the fields of a checkpoint and of ``config.json``: checked once, where the file is opened.

A rule is a pair of a test and the words for what passes it, or a dict of rules for a mapping. A field that is absent or
None is not looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import BadInput

Rule = tuple[Callable[[Any], bool], str]
Rules = Mapping[str, 'Rule | Rules']


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, low: int = 0, high: int = 2**31) -> bool:
    return _is_number(value) and isinstance(value, int) and low <= value < high


def _is_list(value: Any, fits: Callable[[Any], bool], shortest: int = 0, longest: int = 2**31) -> bool:
    return isinstance(value, list | tuple) and shortest <= len(value) <= longest and all(map(fits, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_side(value: Any) -> bool:
    return _is_count(value, 1, 2**16)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value))


def _is_ranked(value: Any, fits: Callable[[Any], bool]) -> bool:
    return _is_list(value, lambda entry: _is_list(entry, lambda _: True, 2, 2) and fits(entry[0]) and (
        entry[1] is None or _is_number(entry[1])))


TEXT: Rule = (_is_text, 'text')
TEXTS: Rule = (lambda value: _is_list(value, _is_text), 'a list of texts')
COUNT: Rule = (_is_count, 'a whole number, 0 or more')
NUMBER: Rule = (_is_number, 'a number')
NUMBERS: Rule = (lambda value: _is_list(value, _is_number, 1, 4096), 'a number for each channel')
SIZE: Rule = (lambda value: _is_list(value, _is_side, 3, 3), 'a channel count, a height and a width')
SIDE: Rule = (lambda value: _is_side(value) or _is_list(value, _is_side), 'a number of pixels')
MAPPING: Rule = (_is_mapping, 'a mapping with texts as keys')
NAMES: Rule = (lambda value: _is_list(value, _is_text) or _is_mapping(value), 'a name for each class')
RANKED: Rule = (lambda value: _is_ranked(value, _is_count), 'epochs and their metrics')
TIMM_RANKED: Rule = (lambda value: _is_ranked(value, _is_text), 'files and their metrics')
PENDING: Rule = (lambda value: _is_list(value, lambda part: part is None or _is_number(part), 2, 2),
                 'an epoch and its metric')
GROUPS: Rule = (lambda value: _is_list(value, _is_mapping), 'a list of mappings')
TENSOR: Rule = (lambda value: isinstance(value, torch.Tensor), 'a tensor')

_ASR: Rules = {'asr': TEXT, 'asr_depth': COUNT, 'asr_sites': TEXTS, 'rd_ratio': NUMBER}
CHECKPOINT: Rules = {
    'arch': TEXT, 'epoch': COUNT, 'metric': NUMBER, 'label_names': NAMES, 'made_by': MAPPING,
    'ema_generator': TENSOR, 'optimizer': {'param_groups': GROUPS},
    'saver': {'best_metric': NUMBER, 'best_epoch': COUNT, 'ranked': RANKED,
              'checkpoint_files': TIMM_RANKED, 'pending': PENDING},
    'plateau': {'best': NUMBER, 'num_bad_epochs': COUNT, 'cooldown_counter': COUNT, 'last_epoch': NUMBER,
                'restore_lr': NUMBERS},
    'data_config': {
        'input_size': SIZE, 'mean': NUMBERS, 'std': NUMBERS, 'crop_pct': NUMBER, 'interpolation': TEXT},
    'args': {
        'model': TEXT, 'num_classes': COUNT, 'in_chans': COUNT, 'img_size': SIDE, 'input_size': SIZE, 'gp': TEXT,
        'model_kwargs': MAPPING, 'asr': TEXT, 'mean': NUMBERS, 'std': NUMBERS, 'crop_pct': NUMBER,
        'interpolation': TEXT, 'dataset': TEXT, 'data_dir': TEXT, 'config': TEXT, 'seed': NUMBER, 'eval_metric': TEXT,
        'strides': SIDE, 'detector_kwargs': MAPPING},
}
CONFIGURATION: Rules = {
    'architecture': TEXT, 'num_classes': COUNT, 'num_features': COUNT, 'model_args': MAPPING, 'label_names': NAMES,
    'pretrained_cfg': {'architecture': TEXT, 'num_classes': COUNT, 'input_size': SIZE, 'mean': NUMBERS, 'std': NUMBERS,
                       'crop_pct': NUMBER, 'crop_mode': TEXT, 'interpolation': TEXT, 'label_names': NAMES, 'tag': TEXT},
    'timm_asr': {'form': TEXT, 'needs': TEXTS, 'model': TEXT, 'asr': _ASR, 'weights_sha256': TEXT, 'dataset': TEXT,
                 'arguments': MAPPING, 'recipe': TEXT, 'weights': TEXT, 'epoch': COUNT, 'seed': NUMBER, 'dtype': TEXT,
                 'files': MAPPING, 'source': {'file': TEXT, 'sha256': TEXT}, 'exported_with': MAPPING,
                 'metrics': {'before': MAPPING, 'after': MAPPING, 'images': COUNT}, 'base_model': TEXT},
}


def check(content: Mapping[str, Any], rules: Rules, where: str) -> None:
    """Raise ``BadInput``, which names the file ``where``, if a field of a mapping is not what the rules say."""
    for key, rule in rules.items():
        value = content.get(key)
        if value is None:
            continue
        fits, what = MAPPING if isinstance(rule, Mapping) else rule
        if not fits(value):
            raise BadInput(f"{where} is malformed: '{key}' is {str(value)[:40]!r}, where {what} belongs")
        if isinstance(rule, Mapping):
            check(value, rule, where)
