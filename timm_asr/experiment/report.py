"""A finished, or half finished, experiment as a table and a file."""

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.reports import as_markdown, write_results
from ..figures.training import plot_arms
from .plan import Plan
from .runner import read_results, values_of
from .search import ranking, rounds
from .statistics import Comparison, compare, holm

_logger = logging.getLogger(__name__)


def comparisons(plan: Plan, rows: Sequence[dict[str, Any]]) -> dict[str, Comparison]:
    """Arm -> its comparison with the arm that it names, by top-1, for those that have one."""
    return {arm.name: found for arm in plan.arms if arm.versus and (
        found := compare(values_of(rows, arm.name, 'top1'), values_of(rows, arm.versus, 'top1')))}


def _spread(values: Sequence[float]) -> str:
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{deviation}' if values else ''


def _shown(form: str, *values: float | None) -> str:
    """The numbers in this form; '' where one is missing."""
    return form.format(*values) if all(value is not None and not math.isnan(value) for value in values) else ''


def table(plan: Plan, rows: Sequence[dict[str, Any]], found: dict[str, Comparison]) -> list[dict[str, str | int]]:
    """A line for each arm; p-values with Holm's correction over the arms in brackets."""
    welch, permutation = (dict(zip(found, holm([getattr(c, kind) for c in found.values()]), strict=True))
                          for kind in ('welch', 'permutation'))
    stopped = [row['arm'] for row in rows if row['status'] == 'stopped']
    lines: list[dict[str, str | int]] = []
    for arm in plan.arms:
        values, losses = (list(values_of(rows, arm.name, key).values()) for key in ('top1', 'nll'))
        worth = vars(found[arm.name]) if arm.name in found else {}
        line: dict[str, str | int] = {
            'arm': arm.name, 'seeds': len(values), 'top-1, %': _spread(values),
            'NLL': f'{statistics.mean(losses):.3f}' if losses else ''}
        if stopped:
            line['stopped'] = stopped.count(arm.name)
        if any(each.reported is not None for each in plan.arms):
            line['paper'] = _shown('{:.2f}', arm.reported)
        if len({each.versus for each in plan.arms if each.versus}) > 1:
            line['versus'] = arm.versus
        lines.append(line | {
            'difference': _shown('{:+.2f}', worth.get('difference')),
            '95 % interval': _shown('{:+.2f} to {:+.2f}', worth.get('low'), worth.get('high')),
            "Welch's t": _shown('{:+.2f}', worth.get('t')),
            'p of it (Holm)': _shown('{:.4f} ({:.4f})', worth.get('welch'), welch.get(arm.name)),
            'p, permutation (Holm)': _shown('{:.4f} ({:.4f})', worth.get('permutation'), permutation.get(arm.name)),
            'detectable': _shown('{:.2f}', worth.get('detectable'))})
    return lines


def dia_table(plan: Plan, rows: Sequence[dict[str, Any]], found: dict[str, Comparison]) -> list[dict[str, str | int]]:
    """As the DIA paper writes it: mean ± deviation and the p-value of Student's t-test, with * below 0.05."""
    p_values = {name: f'{one.student:.3f}{"*" * (one.student < 0.05)}' for name, one in found.items()
                if not math.isnan(one.student)}
    return [{'Model': arm.name,
             'Top1-acc.': _spread(list(values_of(rows, arm.name, 'top1').values())).replace(' ± ', '±'),
             'p-value': p_values.get(arm.name, '-')} for arm in plan.arms]


def markdown(plan: Plan, rows: Sequence[dict[str, Any]], dia: bool = False) -> str:
    """The report: the table, and what its columns mean."""
    text = [f'# {plan.name}', plan.note]
    if plan.budget != 1:
        text.append(f'**Budget {plan.budget:g}**: epochs, training images and seeds are scaled by this factor; figures '
                    'of the paper are of the whole recipe and cannot be compared.')
    text += [f'{len(rows)} of {len(plan.runs)} runs are done.', plan.undecidable]
    versions = ('timm_asr', 'git_commit', 'timm', 'torch')
    if len({tuple(row.get(key) or '' for key in versions) for row in rows}) > 1:
        text.append('**The runs are of several versions** of torch, timm or this package: results.csv says which.')
    found = comparisons(plan, rows)
    if dia:
        text += [as_markdown(dia_table(plan, rows, found)).rstrip(),
                 "Mean ± standard deviation over seeds; p: Student's t-test against the arm that each is compared "
                 'with; *: p < 0.05.']
    else:
        paired = found and all(c.paired for c in found.values())
        way = 'over differences seed by seed' if paired else 'over seeds, not paired where an arm lacks some'
        against = f'Differences are to {plan.baseline!r}. ' if plan.baseline else ''
        text += [
            as_markdown(table(plan, rows, found)).rstrip(),
            f'Top-1 is that of the last epoch, mean ± standard deviation over seeds. {against}Interval: BCa bootstrap, '
            f"{way}, from five seeds on. p: two-sided, Welch's t-test and the permutation of runs between the two arms "
            "(not paired), in brackets with Holm's correction over the comparisons. Detectable: the smallest difference"
            ' that a t-test at 5 % would find in 80 % of such experiments, without the correction.']
    return '\n\n'.join(filter(None, text)) + '\n'


def write_report(plan: Plan, output: Path, dia: bool = False) -> str:
    """Write the CSV and the figure into the folder, once a run is done; returns the Markdown."""
    rows, values = [], {}
    for part, folder in rounds(plan, output) if plan.halving else [(plan, output)]:
        found = read_results(part, folder)
        rows += found
        for arm in part.arms:
            name = f'{arm.name}, {arm.options["epochs"]} epochs' if plan.halving else arm.name
            values[name] = list(values_of(found, arm.name, 'top1').values())
    if rows:
        try:
            write_results(output / 'results.csv', rows)
            plot_arms(plan.name + (f' (budget {plan.budget:g})' if plan.budget != 1 else ''), values,
                      output / 'results.png', f'timm-asr experiment FILE --output {output} --report')
        except OSError as error:
            _logger.warning(f'No results.csv and results.png: {error}')
    return ranking(plan, output) if plan.halving else markdown(plan, rows, dia)
