"""The study's results, from the folder of its runs: a CSV and a figure for each experiment, and the words.

    python results/study.py RUNS

RUNS holds a folder for each file in results/study, as `timm-asr experiment study/X.yaml --output RUNS/X` makes it.
Written: study/X.csv, study/X.png, all of study.md below its line "# Results", and what is between the two marks in
docs/should_i_use_it.md. The plan above the results stays as it was.

    python results/study.py RUNS --begin

makes the folders of the runs whose rows lie in study/X.csv, so that `timm-asr experiment` goes on behind them.
"""

import argparse
import csv
import json
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from timm_asr.engine.reports import as_markdown, write_results
from timm_asr.errors import BadInput, run_main
from timm_asr.experiment.plan import Plan, read_plan
from timm_asr.experiment.report import comparisons, markdown
from timm_asr.experiment.runner import OPTIONS, RESULT, read_results, values_of
from timm_asr.experiment.search import ranking, rounds
from timm_asr.experiment.statistics import LEVEL, holm
from timm_asr.figures.style import new, save, styled
from timm_asr.figures.training import plot_arms

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / 'docs' / 'should_i_use_it.md'
SEARCHES = ('search', 'rates', 'rates_83')
ORDER = ('small', 'confirm', 'rates_confirm', 'depth', 'rates_83_confirm', 'depth_30', 'depth_60', 'all_images_20',
         'all_images_56', 'methods', 'full')
MARKS = '<!-- study: begin -->', '<!-- study: end -->'
SHORT = {'a gain': 'gain', 'a loss': 'loss', 'not known with so many seeds': 'not known'}
PICTURE = '![A panel an experiment, a row an arm: its difference to the best control, in points](images/study.png)'
CONTROLS = ('last norm 0.5', 'last norm 0.27', 'last norm 0.25', 'last norm 0')


def against(plan: Plan, arm: str) -> Plan:
    """The plan with another arm that the others are compared with."""
    return replace(plan, baseline=arm, arms=tuple(
        replace(each, versus='' if each.name == arm else arm) for each in plan.arms))


def balanced(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of the seeds that all arms have."""
    whole = [seed for seed in plan.seeds if sum(row['seed'] == seed for row in rows) == len(plan.arms)]
    return [row for row in rows if row['seed'] in whole]


def better_control(plan: Plan, rows: Sequence[dict[str, Any]]) -> str | None:
    """The control with the higher mean; None where the plan has none."""
    means = {arm.name: statistics.mean(values_of(rows, arm.name, 'top1').values()) for arm in plan.arms
             if arm.name in CONTROLS and values_of(rows, arm.name, 'top1')}
    return max(means, key=lambda name: means[name]) if means else None


def verdicts(plan: Plan, rows: Sequence[dict[str, Any]], control: str, margin: float) -> dict[str, tuple[str, str]]:
    """For each arm, what the plan's rule makes of its difference to the better control, and the figures behind it."""
    found = comparisons(against(plan, control), rows)
    corrected = dict(zip(found, holm([c.permutation for c in found.values()]), strict=True))
    text = {}
    for name, c in found.items():
        if name in ('plain', *CONTROLS):
            continue
        arm, other = (values_of(rows, each, 'top1') for each in (name, control))
        pairs = [(arm[seed], other[seed]) for seed in arm.keys() & other.keys()]  # a run may have been stopped
        by_t = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval()
        high = max(c.high, by_t.high)  # the bootstrap's alone is too narrow
        if corrected[name] < LEVEL and c.low > 0:
            what = 'a gain'
        elif corrected[name] < LEVEL and c.high < 0:
            what = 'a loss'
        elif high < margin:
            what = f'no gain of {margin:g} point{"s" * (margin != 1)} or more'
        else:
            what = 'not known with so many seeds'
        interval = '' if math.isnan(c.low) else f', 95 % from {c.low:+.2f} to {c.high:+.2f}'
        text[name] = what, (f'{c.difference:+.2f} points{interval}, corrected p {corrected[name]:.3f}, detectable '
                            f'{c.detectable:.2f}')
    return text


def section(plan: Plan, rows: Sequence[dict[str, Any]], margin: float) -> str:
    """What is known of an experiment."""
    whole = balanced(plan, rows)
    if not whole:
        found = ', '.join(f'{row["arm"]} {row["top1"]:.1f} % (seed {row["seed"]})' for row in rows)
        return f'## {plan.name}\n\n{len(rows)} of {len(plan.runs)} runs are done, no seed by all arms yet: {found}.'
    text = markdown(plan, whole).replace('# ', '## ', 1).rstrip()
    if len(rows) > len(whole):
        text = text.replace(f'{len(whole)} of {len(plan.runs)} runs are done.',
                            f'{len(rows)} of {len(plan.runs)} runs are done, {len(whole)} of them of whole seeds.')
    return '\n\n'.join([text, *conclusion(plan, whole, margin)])


def conclusion(plan: Plan, whole: Sequence[dict[str, Any]], margin: float) -> list[str]:
    """The verdicts, with a line above them; nothing where there is no control."""
    control = better_control(plan, whole)
    if control is None:
        return []
    seeds = len(whole) // len(plan.arms)
    if seeds < 5:
        return [] if plan.undecidable else [
            f'{plan.name}: {seeds} seed{"s" * (seeds > 1)}, which describe{"s" * (seeds == 1)} and cannot decide.']
    so_far = f', {seeds} of {len(plan.seeds)} seeds so far' * (seeds < len(plan.seeds))
    return [f'{plan.name}{so_far}: against the better control, {control!r}, by the rule of the plan:',
            '\n'.join(f'- **{name}** against {control}: {what} ({figures}).'
                      for name, (what, figures) in verdicts(plan, whole, control, margin).items())]


def line(plan: Plan, whole: Sequence[dict[str, Any]], margin: float) -> dict[str, Any]:
    """The experiment's line in the table for users: mean ± deviation of top-1 in percent, and the verdicts."""
    cells, control = {}, better_control(plan, whole)
    for arm in plan.arms:
        values = list(values_of(whole, arm.name, 'top1').values())
        spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
        cells[arm.name] = f'{statistics.mean(values):.1f}{spread}'
    seeds = len(whole) // len(plan.arms)
    if control is not None and seeds >= 5:
        for name, (what, _) in verdicts(plan, whole, control, margin).items():
            cells[name] += f', {SHORT.get(what, "no gain")}'
    of = f' of {len(plan.seeds)}' * (seeds < len(plan.seeds))
    return {'experiment': plan.name, 'seeds': f'{seeds}{of}', 'plain': cells['plain'],
            'best control': f'{cells[control]} ({control})' if control else '',
            **{name: cells.get(name, '') for name in ('ASR(SE)', 'ASR(IE)', 'SE')}}


@styled
def picture(found: Sequence[tuple[Plan, Sequence[dict[str, Any]]]], path: Path) -> None:
    """Draw each arm's difference to the better control with its interval, a panel an experiment."""
    figure, panels = new(math.ceil(len(found) / 2), 2, 2.0, 9.0, sharex=True)
    for axes in panels.flat[len(found):]:
        axes.set_visible(False)
    for axes, (plan, whole) in zip(panels.flat, found, strict=False):
        control = better_control(plan, whole)
        differences = comparisons(against(plan, control or plan.baseline), whole)
        for row, (name, c) in enumerate(differences.items()):
            color = 'tab:blue' if name.startswith('ASR') else '0.5' if name in ('plain', *CONTROLS) else 'tab:orange'
            axes.plot(c.difference, row, 'o', color=color, markersize=4)
            axes.plot((c.low, c.high), (row, row), color=color)
        axes.axvline(0, color='black', linewidth=0.8)
        axes.set_yticks(range(len(differences)), list(differences))
        axes.set_ylim(len(differences) - 0.5, -0.5)
        axes.set_title('\n'.join(textwrap.wrap(plan.name, 48)))
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(f'points of top-1 over "{control}", {len(whole) // len(plan.arms)} seeds')
    save(figure, path, 'Blue: ASR, free at inference. Orange: attention that stays. Grey: plain networks.',
         'python results/study.py RUNS; lines: 95 % intervals, from five seeds on')


def parts(name: str, folder: Path) -> list[tuple[Plan, Path]]:
    """An experiment and the folder of its runs; of a search, each of its rounds that are known."""
    plan = read_plan(HERE / 'study' / f'{name}.yaml')
    return rounds(plan, folder / name) if plan.halving else [(plan, folder / name)]


def begin(name: str, folder: Path) -> None:
    """Write the results of an experiment's CSV, and the options of those runs, as the runner leaves them."""
    path = HERE / 'study' / f'{name}.csv'
    if not path.is_file():
        return
    with open(path, encoding='utf-8', newline='') as file:
        rows = {(row['arm'], int(row['seed']), int(row['epochs'])): row for row in csv.DictReader(file)}
    made = True
    while made:  # the runs of a round make the next one known
        made = False
        for plan, place in parts(name, folder):
            for run in plan.runs:
                row = rows.pop((run.arm.name, run.seed, run.options['epochs']), None)
                if row is not None and not (place / run.name / RESULT).exists():
                    made = True
                    (place / run.name).mkdir(parents=True, exist_ok=True)
                    (place / run.name / OPTIONS).write_text(yaml.safe_dump(run.options), encoding='utf-8')
                    values = {key: yaml.safe_load(value) for key, value in row.items() if value}
                    (place / run.name / RESULT).write_text(json.dumps(values), encoding='utf-8')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script with this command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('runs', type=Path, metavar='RUNS', help='folder of the folders of runs')
    parser.add_argument('--begin', action='store_true', help='make the folders of the runs that have a row already')
    args = parser.parse_args(argv)
    folder = args.runs
    if not args.begin and not folder.is_dir():
        raise BadInput(f'no folder at {folder}')
    for name in (*ORDER, *SEARCHES):  # without --begin too: no row is lost where RUNS has some of the runs alone
        begin(name, folder)
    if args.begin:
        return 0
    sections, lines, missing, shown = [], [], [], []
    for name in ORDER:
        plan = read_plan(HERE / 'study' / f'{name}.yaml')
        rows = read_results(plan, folder / name)
        if not rows:
            missing.append(f'`study/{name}.yaml`')
            continue
        write_results(HERE / 'study' / f'{name}.csv', rows)
        whole = balanced(plan, rows)
        margin = 0.3 if name.startswith('all_images') else 1.0
        sections.append(section(plan, rows, margin))
        if whole:
            plot_arms(plan.name, {arm.name: list(values_of(whole, arm.name, 'top1').values()) for arm in plan.arms},
                      HERE / 'study' / f'{name}.png', 'python results/study.py RUNS')
            sections.append(f'![{plan.name}](study/{name}.png)')
            if len(whole) > len(plan.arms):  # one seed has no differences
                shown.append((plan, whole))
            if any(arm.name.startswith('ASR') for arm in plan.arms):
                lines.append(line(plan, whole, margin))
    for name in SEARCHES:
        if (folder / name).is_dir():
            found = [row for part, place in parts(name, folder) for row in read_results(part, place)]
            write_results(HERE / 'study' / f'{name}.csv', found)
            search = read_plan(HERE / 'study' / f'{name}.yaml')
            sections.append(re.sub('(?m)^#', '##', ranking(search, folder / name)).rstrip())
        else:
            missing.append(f'`study/{name}.yaml`')
    if missing:
        sections.append(f'Not run yet: {", ".join(missing)}.')
    study = HERE / 'study.md'
    plan_text = study.read_text(encoding='utf-8').partition('\n# Results\n')[0]
    study.write_text('\n'.join([plan_text, '# Results\n', '\n\n'.join(sections)]) + '\n', encoding='utf-8')
    picture(shown, PAGE.parent / 'images' / 'study.png')
    before, _, rest = PAGE.read_text(encoding='utf-8').partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text('\n\n'.join([f'{before}{MARKS[0]}', as_markdown(lines).rstrip(), PICTURE, f'{MARKS[1]}{after}']),
                    encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(run_main(main, 'study.py'))
