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
import copy
import csv
import fcntl
import fnmatch
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CSV = HERE / 'sites.csv'
COLUMNS = ('name', 'family', 'parameters', 'sites', 'places', 'checked_on', 'error', 'problem', 'seconds')
SEED = 42
LARGEST = 60e6  # parameters of a model that is built for real
#: Keywords that make a shallow or narrow model of a large one; the first that its constructor takes.
SHALLOW: tuple[dict[str, Any], ...] = (
    {'depth': 2}, {'depths': (1, 1, 1, 1)}, {'layers': (1, 1, 1, 1)}, {'depths': (1, 1, 2, 1)}, {'depths': (1, 1, 1)},
    {'mlp_ratio': 0.02})
SMALL = 64  # side of the image, where a model takes any
EXACT, PRESERVED, MERGED = 1e-12, 1e-9, 1e-3


def family_of(name: str) -> str:
    """The timm module that defines a model."""
    from timm.models import model_entrypoint
    return model_entrypoint(name).__module__.rpartition('.')[2]


def signature(model: Any) -> dict[str, Any]:
    """Classes, keys and shapes of a model."""
    return {
        'classes': {name: type(module) for name, module in model.named_modules()},
        'state': {name: tuple(t.shape) for name, t in model.state_dict().items()}}


def structure(name: str, **kwargs: Any) -> dict[str, Any]:
    """Attach and fold on the meta device; the row, with what tells its kind."""
    import timm

    import timm_asr
    from timm_asr.asr.wrapper import ASR

    model = timm.create_model(name, device='meta', **kwargs)
    stock = signature(model)
    timm_asr.attach_asr(model, 'se')
    sites = {n: m.layer for n, m in model.named_modules() if isinstance(m, ASR)}
    places = Counter((re.sub(r'\d+', '*', n), type(layer).__name__) for n, layer in sites.items())
    timm_asr.fold_asr(model)
    problem = '' if signature(model) == stock else 'what is left after folding is not the stock model'
    return {
        'sites': len(sites), 'places': ' '.join(f'{n}:{kind}' for n, kind in sorted(places)), 'problem': problem,
        'parameters': sum(p.numel() for p in model.parameters())}


def reduced(name: str, places: str, parameters: int) -> dict[str, Any] | None:
    """Keywords for a cheaper model of the same kind: half the image where its size is fixed, and shallow where the
    model is large; None if it is large and there is no such model."""
    import timm
    cfg = timm.get_pretrained_cfg(name)
    halves = [{'img_size': cfg.input_size[1] // 2}, {}] if cfg.fixed_input_size else [{}]
    for half in halves:
        for kwargs in SHALLOW if parameters > LARGEST else ({},):
            if not half and not kwargs:
                return {}
            try:
                found = structure(name, **half, **kwargs)
            except Exception:  # whatever a constructor says to a keyword that it does not take
                continue
            if found['places'] == places and found['parameters'] <= 2 * LARGEST:
                return {**half, **kwargs}
    return None


def randomize(model: Any) -> None:
    """Move every parameter and statistic away from its initial value, keeping activations of order one."""
    import torch
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if not t.is_floating_point():
            continue
        noise = torch.rand_like(t) * 2 - 1
        with torch.no_grad():
            if name.endswith('psi'):
                t.copy_(noise)
            elif name.endswith(('running_var', 'gain')) or (t.ndim <= 1 and name.endswith('weight')):
                t.copy_(1 + 0.4 * noise)
            elif name.endswith('running_mean') or (t.ndim <= 1 and isinstance(t, torch.nn.Parameter)):
                t.copy_(0.3 * noise)
            elif isinstance(t, torch.nn.Parameter):
                t.add_(0.3 * noise * (t.std() if t.numel() > 1 and t.std() > 0 else 0.1))


def difference(a: Any, b: Any) -> float:
    """Largest difference over the largest value; infinite where a value is not finite."""
    if not (a.isfinite().all() and b.isfinite().all()):
        return float('inf')
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def first_output(model: Any, cfg: dict[str, Any]) -> tuple[Any, Any]:
    """Images and what the model says to them: small ones where it takes them."""
    import torch
    from timm.models import get_model_args
    channels, *size = cfg['input_size']
    grid = get_model_args(model).get('img_size')
    sizes = [list(grid or size)] if cfg.get('fixed_input_size') else [[SMALL, SMALL], size]
    for size in sizes:
        images = torch.randn(1, channels, *size, dtype=torch.float64)
        try:
            with torch.no_grad():
                return images, model(images)
        except (RuntimeError, AssertionError, ValueError, ZeroDivisionError):
            if size is sizes[-1]:
                raise
    raise AssertionError


def check(name: str, **kwargs: Any) -> dict[str, Any]:
    """Everything that must hold, on one model in float64: its largest relative error, and what went wrong.

    Looking for sites leaves every tensor the same object with the same content. Attaching with preserve=True changes
    nothing; folding keeps the function; the folded weights load strictly into the
    stock model, which then computes the same; the inference form does, too, ours and that of timm's own function;
    every psi and gate gets a finite gradient in training mode, and psi one that is not zero.
    """
    import timm
    import torch
    from timm.utils import reparameterize_model

    import timm_asr
    from timm_asr.asr.sites import known_sites
    from timm_asr.asr.wrapper import ASR

    torch.manual_seed(SEED)
    model = timm.create_model(name, **kwargs).double().eval()
    randomize(model)
    images, before = first_output(model, model.pretrained_cfg)
    tensors = {key: (id(t), t.clone()) for key, t in model.state_dict(keep_vars=True).items()}
    known_sites(model)
    for key, t in model.state_dict(keep_vars=True).items():
        if id(t) != tensors[key][0] or t.is_meta or not torch.equal(t, tensors[key][1]):
            return {'problem': f'looking for sites changes {key}'}
    with torch.no_grad():
        timm_asr.attach_asr(model, 'se', preserve=True)
        if difference(before, model(images)) > PRESERVED:
            return {'problem': f'preserve=True changes the function by {difference(before, model(images)):.1e}'}
        for module in model.modules():
            if isinstance(module, ASR):
                randomize(module.vectors)
        expected = model(images)
        if difference(before, expected) < 1e-9:
            return {'problem': 'the attention has no effect'}
        single = copy.deepcopy(model).float()  # which some of timm's merged layers are made in
        verbs = ('fuse', 'reparameterize', 'switch_to_deploy')
        merges = any(hasattr(m, verb) for m in model.modules() for verb in verbs if not isinstance(m, ASR))
        unmerged = single(images.float()) if merges else None
        for verb in (timm_asr.reparameterize, reparameterize_model) if merges else ():
            try:
                merged = verb(copy.deepcopy(single))
            except (AttributeError, AssertionError) as error:
                if verb is timm_asr.reparameterize:
                    raise
                # A block of timm's reads a layer that has ASR: loud, so nobody gets a wrong model.
                print(f'{name}: timm.utils.reparameterize_model: {error}', file=sys.stderr)
                continue
            wrong = difference(unmerged, merged(images.float()))
            if wrong > MERGED:
                return {'problem': f'{verb.__module__}.{verb.__name__} changes the function by {wrong:.1e}'}
            del merged
        del single
        state = timm_asr.fold_asr(model).state_dict()
        error = difference(expected, model(images))
        del model
        stock = timm.create_model(name, **kwargs).double().eval()
        stock.load_state_dict(state, strict=True)
        error = max(error, difference(expected, stock(images)))
    if not error <= EXACT:
        return {'error': error, 'problem': f'folding changes the function by {error:.1e}'}
    timm_asr.attach_asr(stock, 'se').train()
    for module in stock.modules():
        if type(module).__name__ == 'DropPath':  # it could drop both images of a branch
            module.eval()
    output = stock(torch.cat([images, images.flip(-1)]))  # two, since a norm may be left with one position
    sum(o.square().mean() for o in (output if isinstance(output, tuple | list) else (output,))).backward()
    for key, p in stock.named_parameters():
        if '.vectors.' in key and (p.grad is None or not p.grad.isfinite().all()):
            return {'error': error, 'problem': f'{key} gets no finite gradient'}
        if key.endswith('.psi') and not p.grad.any():
            return {'error': error, 'problem': f'{key} gets a gradient of zero'}
    return {'error': error, 'problem': ''}


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
    with CSV.with_suffix('.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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


def unchecked(row: dict[str, Any]) -> bool:
    return passed(row) and not row['checked_on']


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
    worst = max((float(row['error']) for row in good if row['error']), default=0.0)
    checked = {row['checked_on'] for row in good} - {''}
    left = [row for row in good if unchecked(row)]
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
        f'{worst:.1e}), the folded weights load strictly into the stock model, the inference form agrees (in float32, '
        "timm's own function gives the same or says that it cannot), every psi gets a gradient. Where the smallest "
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
        rows = read_rows()
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
            names = [name for name in names if name not in rows]
        find_all(names[part - 1::parts], until)
        kinds = [kind for kind in kinds_of(read_rows()) if any(not read_rows()[n]['checked_on'] for n in kind)]
        check_all(kinds[part - 1::parts], until)
    (HERE / 'sites.md').write_text(table(read_rows()))
    CSV.with_suffix('.lock').unlink(missing_ok=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
