"""Which sites `attach_asr` finds in timm's models, and whether ASR is exact there.

    python results/sites.py                    # every name of timm.list_models(); goes on where it was stopped
    python results/sites.py 'convnext*' pit_*  # these names again
    python results/sites.py --minutes 30       # start nothing new after that
    python results/sites.py table              # sites.md again, from sites.csv

First, every name is built on the 'meta' device, so that its size does not matter: its sites are found on the true
architecture, ASR is attached there and folded, and classes, keys and shapes must be those of the stock model. Names of
a family whose sites have the same places and types are one kind. Then the smallest member of each kind, those with the
most names first, is built for real, moved away from its initial values, and put through everything in float64
(`check`). The work is done in processes of their own; one that dies takes nothing along. Rows go to sites.csv as they
come, and several of these scripts may run side by side (`--part`).
"""

import argparse
import csv
import fnmatch
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sites_check import EXACT, SEED, check, family_of, reduced, structure

HERE = Path(__file__).parent
CSV = HERE / 'sites.csv'
COLUMNS = ('name', 'family', 'parameters', 'sites', 'places', 'checked_on', 'error', 'problem', 'seconds')


def first_line(error: BaseException) -> str:
    return f'{type(error).__name__}: ' + (str(error).strip().splitlines() or [''])[0][:400]


def say(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def work(names: list[str]) -> None:
    """In a process of its own: a line of JSON before and after the structure of each name."""
    for name in names:
        start = time.perf_counter()
        say(name=name)
        try:
            row = structure(name)
        except Exception as error:
            row = {'sites': 0, 'problem': first_line(error)}
        say(name=name, family=family_of(name), **row, seconds=round(time.perf_counter() - start, 1))


def work_checks(members: list[str]) -> None:
    """In a process of its own: a line of JSON before and after the check of each name, known from sites.csv."""
    import torch
    torch.set_num_threads(1)
    rows = read_rows()
    for member in members:
        say(name=member)
        parameters = int(rows[member]['parameters'])
        kwargs = reduced(member, rows[member]['places'], parameters)
        result: dict[str, Any] = {'problem': f'not checked: its smallest member has {parameters / 1e6:.0f}M parameters'}
        full = {key: value for key, value in (kwargs or {}).items() if key != 'img_size'}
        for options in [kwargs] + [full] * (kwargs != full) if kwargs is not None else []:
            kwargs = options
            try:
                result = check(member, **options)
                break
            except Exception as error:  # some models take a smaller image and cannot use it
                result = {'problem': first_line(error)}
        on = member + ''.join(f' ({key}={value})' for key, value in (kwargs or {}).items())
        say(name=member, checked_on=on, **result)


def read_rows() -> dict[str, dict[str, Any]]:
    if not CSV.exists():
        return {}
    with CSV.open(newline='') as file:
        return {row['name']: row for row in csv.DictReader(file)}


@contextmanager
def table_of_rows() -> Iterator[dict[str, dict[str, Any]]]:
    """The rows of sites.csv, to be changed inside; other processes wait."""
    with FileLock(CSV.with_suffix('.lock')):
        rows = read_rows()
        yield rows
        aside = CSV.with_suffix('.part')
        with aside.open('w', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            writer.writeheader()
            for name in sorted(rows):
                row = {key: rows[name].get(key, '') for key in COLUMNS}
                if isinstance(row['error'], float):
                    row['error'] = f'{row["error"]:.1e}'
                writer.writerow(row)
        os.replace(aside, CSV)


def run(verb: str, names: list[str], until: float) -> Iterator[dict[str, Any]]:
    """What a process of its own says about these names; one that kills it is named, and the others go on."""
    left = list(names)
    while left and time.time() < until:
        current = ''
        command = [sys.executable, '-W', 'ignore', __file__, verb, *left]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith('{'):
                    continue
                row = json.loads(line)
                current = row['name']
                if len(row) > 1:
                    left.remove(current)
                    yield row
                    if time.time() >= until:
                        process.kill()
                        return
        if process.returncode and current in left:
            left.remove(current)
            yield {'name': current, 'problem': f'the process ended with status {process.returncode}'}


def find_all(names: list[str], until: float) -> None:
    """The structure of each name, forty in a process."""
    done = 0
    for i in range(0, len(names), 40):
        for row in run('--structure', names[i:i + 40], until):
            with table_of_rows() as rows:
                rows[row['name']] = row
            done += 1
            if row['problem']:
                print(f'    {row["name"]}: {row["problem"]}', flush=True)
        print(f'structure: {done} of {len(names)} names', flush=True)


def kinds_of(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Names by kind, the smallest first; kinds with the most names first."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for row in rows.values():
        if int(row['sites'] or 0) and not (row['problem'] and not row['checked_on']):
            kinds.setdefault((row['family'], row['places']), []).append(row['name'])
    by_size = [sorted(names, key=lambda name: (int(rows[name]['parameters'] or 0), name)) for names in kinds.values()]
    return sorted(by_size, key=len, reverse=True)


def check_all(kinds: list[list[str]], until: float) -> None:
    """The smallest member of each kind, ten in a process; what is found is that of all its names."""
    members = {names[0]: names for names in kinds}
    firsts = list(members)
    for i in range(0, len(firsts), 10):
        for row in run('--check', firsts[i:i + 10], until):
            found = {'checked_on': row.get('checked_on', row['name']), 'error': row.get('error', ''),
                     'problem': row['problem']}
            with table_of_rows() as rows:
                for name in members[row['name']]:
                    rows[name].update(found)
            count = len(members[row['name']])
            print(f'checked: {found["checked_on"]} for {count} names {found["problem"]}', flush=True)


def passed(row: dict[str, Any]) -> bool:
    return not row['problem'] and int(row['sites'] or 0) > 0


def table(rows: dict[str, dict[str, Any]]) -> str:
    """sites.md."""
    import timm
    import torch
    from timm.models import model_entrypoint

    import timm_asr
    total = sum(not model_entrypoint(name).__module__.startswith('timm_asr') for name in timm.list_models())
    good = [row for row in rows.values() if passed(row)]
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        families.setdefault(row['family'], []).append(row)
    errors = {row['checked_on']: float(row['error']) for row in good if row['error']}
    worst = max((error for error in errors.values() if error <= EXACT), default=0.0)
    magnify = ', '.join(f'{name} {error:.1e}' for name, error in errors.items() if error > EXACT)
    magnified = f'; {magnify}, where an image that is rounded makes a tenth of that or more' if magnify else ''
    checked = {row['checked_on'] for row in good} - {''}
    left = [row for row in good if not row['checked_on']]
    kinds_left = {(row['family'], row['places']) for row in left}
    lines = [
        '# Sites of ASR in timm\'s models', '',
        f'{len(good)} of {len(rows)} names ({100 * len(good) / len(rows):.1f} %) passed, '
        f'{len(good) - len(left)} of them with a check of their kind in float64'
        + (f'; timm has {total}, the sweep is not over' if total > len(rows) else '') + '. Written by '
        f'`python results/sites.py` with timm {timm.__version__}, PyTorch {torch.__version__}, timm_asr '
        f'{timm_asr.__version__}, Python {platform.python_version()}, on 2 cores and 24 GiB, seed {SEED}; each name is '
        'a row of [sites.csv](sites.csv).', '',
        'Passed means: sites were found on the true architecture (on the meta device), and attaching and folding '
        'there leaves the classes, keys and shapes of the stock model. On the smallest member of each kind (names of a '
        f'family whose sites have the same places and types; {len(checked)} models, column `checked_on`), randomised '
        'and in float64: preserve=True changes nothing, folding keeps the function (largest relative error '
        f'{worst:.1e}{magnified}), the folded weights load strictly into the stock model, the inference form agrees '
        "(in float32, timm's own function gives the same or says that it cannot), every psi gets a gradient. Where the "
        'smallest '
        'member has more than 60M parameters, a shallow one of the same kind stands for it (the keyword is in the '
        'column). Deeper and wider members are held to be like it.'
        + (f' {len(left)} names, in {len(kinds_left)} kinds, were not reached by the check: their `checked_on` is '
           'empty.' if left else '')
        + ' Seconds are those of the structure, and depend on what else the machine does.', '',
        '| family | names | passed | sites (of the first name) |', '|---|---|---|---|']
    for family, members in sorted(families.items()):
        example = next((row['places'] for row in members if row['places']), '').split(' ')
        shown = [f'`{place.partition(":")[0]}`' for place in example[:4] if place] + ['...'] * (len(example) > 4)
        lines.append(f'| {family} | {len(members)} | {sum(map(passed, members))} | {", ".join(shown)} |')
    lines += ['', '## Not passed', '']
    problems: dict[str, list[str]] = {}
    for row in rows.values():
        if not passed(row):
            problems.setdefault(row['problem'], []).append(row['name'])
    lines += [f'- {", ".join(f"`{name}`" for name in names)}: {problem}' for problem, names in problems.items()]
    # A line of a table is one line; prose is not.
    wrapped = [
        line if line.startswith('|') else textwrap.fill(
            line, 120, break_on_hyphens=False, subsequent_indent='  ' if line.startswith('- ') else '')
        for line in lines]
    return '\n'.join(wrapped) + '\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('patterns', nargs='*', metavar='PATTERN', help="names or wildcards; 'table' writes sites.md")
    parser.add_argument('--part', default='1/1', metavar='I/N', help='the I-th of N parts, which may run side by side')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start nothing new after so long')
    parser.add_argument('--structure', nargs='+', help=argparse.SUPPRESS)
    parser.add_argument('--check', nargs='+', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.structure or args.check:
        work(args.structure) if args.structure else work_checks(args.check)
        return 0
    import timm
    if args.patterns != ['table']:
        until = time.time() + 60 * args.minutes
        part, parts = map(int, args.part.split('/'))
        names = timm.list_models()  # timm_asr is not imported here, and adds none
        if args.patterns:
            names = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in args.patterns)]
            if not names:
                print(f'no model of timm.list_models() matches {" ".join(args.patterns)}', file=sys.stderr)
                return 2
            with table_of_rows() as rows:  # a kind is checked again as a whole
                again = {(rows[n]['family'], rows[n]['places']) for n in names if n in rows}
                for row in rows.values():
                    if (row['family'], row['places']) in again:
                        row['checked_on'] = row['error'] = row['problem'] = ''
        else:
            rows = read_rows()
            names = [name for name in names if name not in rows]
        find_all(names[part - 1::parts], until)
        rows = read_rows()
        kinds = [kind for kind in kinds_of(rows) if any(not rows[n]['checked_on'] for n in kind)]
        check_all(kinds[part - 1::parts], until)
    (HERE / 'sites.md').write_text(table(read_rows()))
    CSV.with_suffix('.lock').unlink(missing_ok=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
