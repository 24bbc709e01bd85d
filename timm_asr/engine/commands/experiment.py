"""Make the runs of a plan, arms over seeds, and say what their differences are worth."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import BadInput
from ...experiment.plan import find_plan, list_tables, read_plan
from ..options import parse, switch, value

OPTIONS = [
    value('plan', str, None, 'YAML with name, base, arms, seeds and baseline; or the name of a table of a paper: '
          + ', '.join(list_tables()), metavar='FILE'),
    value('--output', str, '', 'where the runs are; those that are done stay', metavar='FOLDER'),
    value('--parallel', int, 1, 'runs at once, on the cores or on one GPU'),
    value('--device', str, None, 'as train.py --device'),
    switch('--report', 'train nothing: print the table as Markdown, write results.csv and results.png into the folder'),
    value('--versus', str, None, "arm that the report compares the others with; the plan's if unset", metavar='ARM'),
    switch('--dia-format', "the report's table as the DIA paper writes it: mean±deviation, p, *"),
    value('--budget', float, 1.0, 'scale epochs, training images and seeds by this'),
    switch('--check', 'train nothing: parse every option, build every model, list the runs'),
]


def main(argv: Sequence[str], prog: str = 'timm-asr experiment') -> int:
    """Run the command; returns the exit status."""
    args = parse(OPTIONS, {}, argv, prog, __doc__)
    if not args.output:
        raise BadInput('--output FOLDER says where the runs are')
    if args.parallel < 1:
        raise BadInput(f'--parallel must be at least 1, not {args.parallel}')
    plan, output = read_plan(find_plan(args.plan), args.budget, args.versus), Path(args.output)
    for module in ('scipy', 'matplotlib'):
        if args.report and importlib.util.find_spec(module) is None:
            raise BadInput(f'--report needs {module}: pip install {module}')
    from ...experiment.runner import check_plan, make_runs, missing_runs
    from ..progress import setup_logging
    from .train import parse_args
    # Each run is of one process: whatever started several (srun, torchrun), they share the folder.
    os.environ['WORLD_SIZE'] = '1'
    os.environ.pop('RANK', None)
    setup_logging()
    if plan.halving and (args.dia_format or args.versus):
        raise BadInput('--dia-format and --versus compare arms, and a search ranks them; leave them out')
    if args.report:
        from ...experiment.report import write_report  # with scipy, which training does not need
        print(write_report(plan, output, args.dia_format), end='')
        return 0
    if plan.halving:
        from ...experiment.search import ranking, rounds
        check_plan(plan, output / 'check', parse_args)
        while missing_runs(*(latest := rounds(plan, output)[-1])) and not args.check:
            make_runs(*latest, parse_args, args.parallel, args.device)
        print(ranking(plan, output), end='')
        return 0
    check_plan(plan, output, parse_args)
    todo = missing_runs(plan, output)
    if args.check:
        print(*(run.name for run in todo), sep='\n')
        return 0
    print(f'{plan.name}: {len(todo)} of {len(plan.runs)} runs to make.', plan.undecidable, file=sys.stderr)
    make_runs(plan, output, parse_args, args.parallel, args.device)
    print(f'{plan.name}: all {len(plan.runs)} runs are done; --report compares them.', file=sys.stderr)
    return 0
