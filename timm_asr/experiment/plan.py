"""A plan of an experiment, as a YAML file says it: arms, seeds, and the arm that the others are compared with.

    name: digits
    base: {config: digits, epochs: 12}     # options of train.py for all; config is a recipe or a file
    arms:
      plain: {model: resnet20}             # the options that differ
      ASR(SE): {model: resnet20_asr_se}
    seeds: [0, 1, 2]
    baseline: plain

An arm may also name the arm that it is compared with (``versus``), and what a paper reports for it (``reported``).
With ``halving: {epochs: [2, 4, 8], keep: 0.5}`` it is a search: see ``search.py``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.recipes import find_recipe
from ..errors import BadInput, did_you_mean

TABLES = Path(__file__).resolve().parent / 'tables'
_KEYS = ('name', 'base', 'arms', 'seeds', 'baseline', 'note', 'halving')
#: Options that count epochs, which a budget scales, and the least of each.
_EPOCHS = {'epochs': 1, 'warmup_epochs': 1, 'cooldown_epochs': 0, 'decay_epochs': 1, 'decay_milestones': 1,
           'mixup_off_epoch': 1}
#: What ``train.py`` takes of them where neither plan nor recipe says it.
_DEFAULTS = {'epochs': 300, 'warmup_epochs': 5, 'decay_epochs': 90.0, 'decay_milestones': [90, 180, 270]}
#: What every run has unless the plan says otherwise: only its last epoch is measured.
QUIET = {'val_interval': 10 ** 6, 'log_interval': 10 ** 6, 'no_fuse': True, 'no_progress': True}


@dataclass(frozen=True)
class Arm:
    """One way to train: options of ``train.py``, the arm that it is compared with (or ''), and the top-1 of a paper."""

    name: str
    options: dict[str, Any]
    versus: str = ''
    reported: float | None = None


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f'{re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.arm.name).strip("_")}-{self.seed}'

    @property
    def options(self) -> dict[str, Any]:
        # Whatever a recipe keeps of its run: here the last checkpoint stays, which no other replaces.
        return {**QUIET, **self.arm.options, 'checkpoint_hist': 1, 'seed': self.seed}


@dataclass(frozen=True)
class Plan:
    """A whole experiment: each arm runs with each seed. Arms that name no other are compared with ``baseline``.

    ``budget`` is what epochs, images and seeds were scaled by; ``halving`` the epochs of each round of a search, which
    leaves the share ``keep`` of the arms.
    """

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str
    note: str = ''
    budget: float = 1.0
    halving: tuple[int, ...] = ()
    keep: float = 0.5

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of them, seed by seed, so that an experiment that is stopped early is balanced."""
        return tuple(Run(arm, seed) for seed in self.seeds for arm in self.arms)

    @property
    def undecidable(self) -> str:
        """A sentence where the seeds are too few for any p below 0.05, by the permutation test with Holm's correction;
        '' elsewhere. It is least where every run of one arm is above every run of the other.
        """
        seeds, count = len(self.seeds), sum(bool(arm.versus) for arm in self.arms)
        least = min(1.0, 2 / math.comb(2 * seeds, seeds) * count)
        return '' if least < 0.05 else (
            f'With {seeds} seed{"s" * (seeds > 1)} an arm and {count} comparison{"s" * (count > 1)} no corrected '
            f'permutation p can be below {least:.2g}: these runs describe, and cannot decide.')


def list_tables() -> list[str]:
    """Names of the papers' tables that come with the package."""
    return sorted(path.stem for path in TABLES.glob('*.yaml'))


def find_plan(name: str) -> Path:
    """The file of a plan: an existing one, or one of the papers' tables by its name; else ``BadInput``."""
    for path in (Path(name), TABLES / f'{name.removesuffix(".yaml")}.yaml'):
        if path.is_file():
            return path
    raise BadInput(f'no experiment at {name}{did_you_mean(Path(name).stem, list_tables())}')


def _merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Later options win; mappings (``model_kwargs``) are joined."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            key = str(key).replace('-', '_')
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = {**merged[key], **value} if both else value
    return merged


def scale_epochs(options: dict[str, Any], factor: float, path: str | Path = '') -> dict[str, Any]:
    """The options of a run with fewer epochs, its schedule in proportion; ``path`` is the file that they are from."""
    found = dict(options)
    for key in found.keys() & _EPOCHS.keys():
        if isinstance(found[key], list):
            found[key] = [max(_EPOCHS[key], round(_number(path, key, value) * factor)) for value in found[key]]
        elif (value := _number(path, key, found[key] or 0)) >= 1:  # a smaller one is a share, as decay_epochs may be
            scaled = value * factor
            found[key] = max(_EPOCHS[key], scaled if key == 'decay_epochs' else round(scaled))
    if found.get('epochs') == 1:
        found['warmup_epochs'] = 0
    return found


def read_plan(path: str | Path, budget: float = 1.0, versus: str | None = None) -> Plan:
    """Read a plan and check its shape, ``BadInput`` if it is wrong; what its options are worth, ``train.py`` says.

    ``budget`` (above 0, at most 1) scales epochs, training images and seeds; the other arms are compared with
    ``versus``.
    """
    if not 0 < budget <= 1:
        raise BadInput(f'--budget {budget:g}: expected a factor above 0 and at most 1')
    from ..checkpoints.read import read_yaml  # imports torch, which help does without
    content = read_yaml(path)
    for key in set(content) - set(_KEYS):
        raise BadInput(f'{path}: an experiment has no {key!r}{did_you_mean(str(key), _KEYS)}; it has '
                       f'{", ".join(_KEYS)}')
    base, arms, seeds = content.get('base') or {}, content.get('arms'), content.get('seeds')
    if not isinstance(base, dict) or not isinstance(arms, dict) or not arms or not all(
            isinstance(arm, dict) for arm in arms.values()):
        raise BadInput(f'{path}: base is a mapping of options, and arms one of names to such mappings')
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise BadInput(f'{path}: seeds is a list of whole numbers, e.g. [0, 1, 2]')
    arms = {str(name): own for name, own in arms.items()}
    if versus is not None and versus not in arms:
        raise BadInput(f'--versus {versus}: the arms are {", ".join(map(repr, arms))}')
    baseline = str(content.get('baseline', '')) if versus is None else versus
    rounds, keep = _halving(path, content['halving']) if content.get('halving') else ([], 0.5)
    found = []
    for name, own in arms.items():
        against = baseline if versus is not None else str(own.get('versus', baseline))
        if against not in ('', *arms):
            raise BadInput(f'{path}: there is no arm {against!r} to compare {name!r} with'
                           f'{did_you_mean(against, list(arms))}')
        if not isinstance(own.get('reported'), int | float | None):
            raise BadInput(f'{path}: reported, the figure of a paper, is a number, and the arm {name!r} has '
                           f'{own["reported"]!r}')
        recipe = own.get('config', base.get('config'))
        below = read_yaml(find_recipe(str(recipe))) if recipe else {}
        options = _merge(below, base, {k: v for k, v in own.items() if k not in ('versus', 'reported')})
        options.pop('config', None)
        if rounds and not options.get('holdout'):
            raise BadInput(f'{path}: a search chooses, so it needs images held out of the training set (holdout), '
                           f'which the arm {name!r} has not')
        if rounds or budget != 1:
            whole = {'epochs': rounds[-1]} if rounds else {}
            options = scale_epochs({**_DEFAULTS, **whole, **options}, budget, path)
        if budget != 1:
            images = _number(path, 'train_images', options.get('train_images') or 1)
            options['train_images'] = round(images * budget) if images > 1 else images * budget
        found.append(Arm(name, options, '' if name == against else against, own.get('reported')))
    plan = Plan(str(content.get('name', Path(path).stem)), tuple(found),
                tuple(dict.fromkeys(seeds))[:max(1, math.ceil(len(seeds) * budget))], baseline,
                str(content.get('note', '')).strip(), budget,
                tuple(max(1, round(epochs * budget)) for epochs in rounds), keep)
    if len({run.name for run in plan.runs}) < len(plan.runs):
        raise BadInput(f'{path}: two arms would share a folder; give them names that differ in letters or digits')
    return plan


def _number(path: str | Path, key: str, said: Any) -> float:
    try:
        return float(said)  # YAML takes 1e4, without a dot, for text
    except (TypeError, ValueError):
        raise BadInput(f'{path}: {key} takes numbers, not {said!r}') from None


def _halving(path: str | Path, said: Any) -> tuple[list[int], float]:
    """The epochs of each round of a search, and the share of the arms that goes on."""
    epochs, keep = (said.get('epochs'), said.get('keep', 0.5)) if isinstance(said, dict) else (None, 0)
    if not isinstance(epochs, list) or not epochs or not all(type(e) is int for e in epochs) or not (
            isinstance(keep, float) and 0 < keep < 1):
        raise BadInput(f'{path}: halving is {{epochs: [2, 4, 8], keep: 0.5}}: the epochs of each round, and the share '
                       'of the arms that it leaves')
    return epochs, float(keep)
