"""The weights inside a checkpoint, under the names that a model has for them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..models.authors import our_names

# What DDP, torch.compile, Lightning and wrappers of all kinds put before the names of the model inside.
_WRAPPERS = ('module', '_orig_mod', 'model', 'net', 'network', 'backbone', 'encoder', '_forward_module')


def averaged_in(content: Mapping[str, Any]) -> Any:
    """The averaged weights in what ``read_checkpoint`` returned, None where there are none."""
    return content.get('state_dict_ema', content.get('model_ema'))


def state_dict_of(content: Mapping[str, Any], use_ema: bool = False, path: str | Path = '',
                  own: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """The weights in what ``read_checkpoint`` returned, without the prefix that a wrapper put before all their names.

    A prefix that is in ``own``, the names that the model has, stays: that of a detector's backbone, for example.
    Weights of the papers' authors get the names that they have here. ``BadInput``, which names ``path``, says that
    there are no weights, or with ``use_ema`` no averaged ones.
    """
    ema = averaged_in(content)
    if use_ema and ema is None:
        raise BadInput(f'{path} has no averaged weights; leave out --use-ema (use_ema) to take those it has')
    weights = ema if use_ema else content.get('state_dict', content.get('model', content))
    if (not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights)
            or not any(isinstance(value, torch.Tensor) for value in weights.values())):
        raise BadInput(f'{path} holds no weights: no state_dict inside')
    weights = dict(weights)
    while (prefix := _prefix_of(weights)) and not any(key.startswith(prefix) for key in own):
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return dict(our_names(weights))


def _prefix_of(weights: Mapping[str, Any]) -> str:
    """A wrapper's prefix: one that all keys have, or nearly all beside those of a loss or a metric (Lightning)."""
    first = Counter(key.partition('.')[0] for key in weights if '.' in key)
    name, count = first.most_common(1)[0] if first else ('', 0)
    alone = count == len(weights) and len({key.split('.')[1] for key in weights}) > 1
    if name in _WRAPPERS and (alone or count > 0.9 * len(weights)):
        return f'{name}.'
    return ''


def classes_in(weights: Mapping[str, Any], classifier: Any) -> int | None:
    """The number of classes by the classifier itself, the best witness, under the name that a model's cfg gives it."""
    name = classifier[0] if isinstance(classifier, list | tuple) and classifier else classifier
    found = [weights.get(f'{name}.{part}') for part in ('weight', 'bias')]
    return next((tensor.shape[0] for tensor in found if isinstance(tensor, torch.Tensor)), None)


def load_weights(model: nn.Module, path: str | Path, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Load weights strictly into the model of this name; ``BadInput`` says what kind of other model they belong to."""
    classes = classes_in(weights, (getattr(model, 'pretrained_cfg', None) or {}).get('classifier'))
    if classes is not None and classes != model.num_classes:
        raise BadInput(f'{path} was trained for {classes} classes, but {model.num_classes} were asked for; '
                       f'leave --num-classes out or give {classes}')
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        own, found = set(model.state_dict()), set(weights)
        said = [f'{len(keys)} keys {what} (such as {min(keys)})'
                for keys, what in ((own - found, 'missing'), (found - own, 'too many')) if keys]
        trains, trained = (any(key.endswith('psi') for key in keys) for keys in (own, found))
        if trains != trained:
            said[-1] += ('; it is folded (it has no ASR vectors): name the plain architecture' if trains else
                         '; it is a trainable ASR checkpoint: name the ASR model, and --reparam for its inference form')
        lines = [line.strip() for line in str(error).splitlines()]
        reason = ' and '.join(said) or lines[min(1, len(lines) - 1)].rstrip('.')
        raise BadInput(f'{path} does not fit {name}: {reason}') from None
