"""Successive halving (Jamieson and Talwalkar 2016): short runs of all arms, longer ones of those that did best.

Every run is measured on images held out of the training set, so that the test images stay unseen until the winner is
confirmed, by an experiment of its own with fresh seeds.
"""

import math
import statistics
from dataclasses import replace
from pathlib import Path

from ..engine.reports import as_markdown
from .plan import Plan, scale_epochs
from .runner import missing_runs, read_results, values_of


def _scores(plan: Plan, folder: Path) -> dict[str, float]:
    """Arm -> mean top-1 on the held-out images over its seeds; minus infinity where a run's loss was not finite."""
    rows = read_results(plan, folder)
    values = {arm.name: list(values_of(rows, arm.name, 'top1').values()) for arm in plan.arms}
    return {name: statistics.mean(v) if len(v) == len(plan.seeds) else -math.inf for name, v in values.items()}


def rounds(plan: Plan, output: Path) -> list[tuple[Plan, Path]]:
    """The rounds that are known: those whose runs are all made, and the one after them, if there is one."""
    arms, found = plan.arms, []
    for number, epochs in enumerate(plan.halving, 1):
        part = replace(plan, name=f'{plan.name}, round {number}: {epochs} epochs', halving=(), arms=tuple(
            replace(arm, options=scale_epochs(arm.options, epochs / arm.options['epochs'])) for arm in arms))
        folder = output / f'round{number}'
        found.append((part, folder))
        if missing_runs(part, folder):
            break
        scores = _scores(part, folder)
        best = sorted(arms, key=lambda arm: -scores[arm.name])[:max(1, math.ceil(len(arms) * plan.keep))]
        arms = tuple(arm for arm in arms if arm in best)
    return found


def ranking(plan: Plan, output: Path) -> str:
    """The finished rounds as Markdown, the best arm of each first."""
    title = f'{plan.name}, budget {plan.budget:g}' if plan.budget != 1 else plan.name
    text = [f'# {title}', f'{plan.note} Top-1 is on images held out of the training set.'.strip()]
    for part, folder in rounds(plan, output):
        if missing_runs(part, folder):
            text.append(f'{part.name}: {len(missing_runs(part, folder))} of {len(part.runs)} runs are missing.')
            break
        scores = sorted(_scores(part, folder).items(), key=lambda item: -item[1])
        text += [f'## {part.name}', as_markdown([
            {'arm': name, 'held-out top-1, %': f'{score:.2f}' if math.isfinite(score) else 'stopped'}
            for name, score in scores]).rstrip()]
    return '\n\n'.join(text) + '\n'
