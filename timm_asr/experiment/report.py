"""A finished, or half finished, experiment as a table and a file."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.reports import as_markdown, write_results
from ..figures.experiment import plot_arms
from .plan import Plan
from .runner import read_results, values_of
from .statistics import Comparison, compare, holm

CSV, FIGURE = 'results.csv', 'results.png'


def comparisons(plan: Plan, rows: Sequence[dict[str, Any]], key: str = 'top1') -> dict[str, Comparison]:
    """Arm -> its comparison with the arm that it names, for those that have one."""
    found = {arm.name: compare(values_of(rows, arm.name, key), values_of(rows, arm.versus, key))
             for arm in plan.arms if arm.versus}
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def _number(value: float | None, form: str = '.2f') -> str:
    return '' if value is None or math.isnan(value) else format(value, form)


def _spread(values: Sequence[float]) -> str:
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{deviation}' if values else ''


def table(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[dict[str, str | int]]:
    """A line for each arm; p-values with Holm's correction over the arms in brackets."""
    found = comparisons(plan, rows)
    corrected = {kind: dict(zip(found, holm([getattr(c, kind) for c in found.values()]), strict=True))
                 for kind in ('welch', 'permutation')}
    several = len({arm.versus for arm in plan.arms if arm.versus}) > 1
    lines: list[dict[str, str | int]] = []
    for arm in plan.arms:
        values = list(values_of(rows, arm.name, 'top1').values())
        stopped = sum(row['arm'] == arm.name and row['status'] == 'stopped' for row in rows)
        c = found.get(arm.name)
        line: dict[str, str | int] = {
            'arm': arm.name, 'seeds': len(values), 'top-1, %': _spread(values),
            'NLL': _number(statistics.mean(values_of(rows, arm.name, 'nll').values()) if values else None, '.3f')}
        if any(row['status'] == 'stopped' for row in rows):
            line['stopped'] = stopped
        if any(arm.reported is not None for arm in plan.arms):
            line['paper'] = _number(arm.reported)
        if several:
            line['versus'] = arm.versus
        line['difference'] = f'{c.difference:+.2f}' if c else ''
        line['95 % interval'] = f'{c.low:+.2f} to {c.high:+.2f}' if c and not math.isnan(c.low) else ''
        line["Welch's t"] = _number(c.t, '+.2f') if c else ''
        for kind, title in (('welch', 'p of it (Holm)'), ('permutation', 'p, permutation (Holm)')):
            p = getattr(c, kind) if c else math.nan
            line[title] = f'{p:.4f} ({corrected[kind][arm.name]:.4f})' if not math.isnan(p) else ''
        line['detectable'] = _number(c.detectable) if c else ''
        lines.append(line)
    return lines


def dia_table(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[dict[str, str | int]]:
    """As the DIA paper writes it: mean ± deviation and the p-value of Student's t-test, with * below 0.05."""
    lines: list[dict[str, str | int]] = []
    found = comparisons(plan, rows)
    for arm in plan.arms:
        values = list(values_of(rows, arm.name, 'top1').values())
        p = found[arm.name].student if arm.name in found else math.nan
        lines.append({'Model': arm.name, 'Top1-acc.': _spread(values).replace(' ± ', '±'),
                      'p-value': '-' if math.isnan(p) else f'{p:.3f}{"*" * (p < 0.05)}'})
    return lines


def markdown(plan: Plan, rows: Sequence[dict[str, Any]], dia: bool = False) -> str:
    """The report: the table, and what its columns mean."""
    head = [f'# {plan.name}', plan.note] if plan.note else [f'# {plan.name}']
    if plan.budget != 1:
        head.append(f'**Budget {plan.budget:g}**: epochs, training images and seeds are scaled by this factor; figures '
                    'of the paper are of the whole recipe and cannot be compared.')
    done = f'{len(rows)} of {len(plan.runs)} runs are done.'
    if dia:
        return '\n\n'.join([*head, done, as_markdown(dia_table(plan, rows)).rstrip(), (
            "Mean ± standard deviation over seeds; p: Student's t-test against the arm that each is compared with; "
            '*: p < 0.05.')]) + '\n'
    found = comparisons(plan, rows)
    paired = found and all(c.paired for c in found.values())
    way = 'over differences seed by seed' if paired else 'over seeds, not paired where an arm lacks some'
    against = f'Differences are to {plan.baseline!r}. ' if plan.baseline else ''
    return '\n\n'.join([*head, done, as_markdown(table(plan, rows)).rstrip(), (
        f'Top-1 is that of the last epoch, mean ± standard deviation over seeds. {against}'
        f"Interval: BCa bootstrap, {way}. p: two-sided, Welch's t-test and the permutation of runs between the two "
        'arms (not paired), in brackets with Holm\'s correction over the comparisons. Detectable: the smallest '
        'difference that a t-test at 5 % would find in 80 % of such experiments.')]) + '\n'


def write_report(plan: Plan, output: Path, dia: bool = False) -> str:
    """Write the CSV and, where matplotlib is there, the figure into the folder; returns the Markdown."""
    rows = read_results(plan, output)
    if rows:
        write_results(output / CSV, rows)
        plot_arms(plan.name + (f' (budget {plan.budget:g})' if plan.budget != 1 else ''),
                  {arm.name: list(values_of(rows, arm.name, 'top1').values()) for arm in plan.arms}, output / FIGURE,
                  f'timm-asr experiment FILE --output {output} --report')
    return markdown(plan, rows, dia)
