"""Real tiny experiments on the digits: planted effects, kills, and what a folder may not mix."""

import csv
import json
import os
import re
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from scipy import stats
from train_helpers import _CONTEXT, children_of

from timm_asr.engine import checkpoint
from timm_asr.engine.commands import experiment
from timm_asr.errors import BadInput, InUse, Stopped
from timm_asr.experiment import report, runner
from timm_asr.experiment.plan import read_plan
from timm_asr.experiment.report import markdown

BASE = {
    'config': 'digits', 'model': 'resnet20', 'model_kwargs': {'layers': [1, 1, 1], 'channels': [8, 16, 16]},
    'img_size': 8, 'train_crop_mode': 'pad', 'epochs': 4, 'batch_size': 32, 'device': 'cpu', 'warmup_epochs': 0,
    'smoothing': 0.0, 'train_images': 160}
ARMS = {'plain': {}, 'more images': {'train_images': 1400}, 'other images': {'split_seed': 1}}


def write(path, arms, seeds, halving=None, **base):
    path.write_text(yaml.safe_dump({'name': 'tiny', 'base': BASE | base, 'arms': arms, 'seeds': seeds,
                                    'baseline': 'plain', 'halving': halving}, sort_keys=False))
    return path


def command(path, folder, *more):
    return experiment.main([str(path), '--output', str(folder), *map(str, more)])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    plan = write(folder / 'plan.yaml', ARMS, [0, 1, 2, 3, 4])
    assert command(plan, folder / 'runs') == 0
    return plan, folder / 'runs'


def test_an_arm_that_is_better_by_construction_is_found_and_one_that_is_not_is_not(finished, capsys):
    """Nine times as many images do better; others as many do not."""
    assert command(*finished, '--report') == 0
    shown = capsys.readouterr().out
    assert '15 of 15 runs are done' in shown
    lines = {cells[1].strip(): cells for cells in (line.split('|') for line in shown.splitlines()) if len(cells) > 5}
    holm = {name: float(re.search(r'\((.*)\)', lines[name][9])[1]) for name in ('more images', 'other images')}
    assert holm['more images'] < 0.05 < holm['other images']
    assert float(lines['more images'][5]) > 0
    folder = finished[1]
    assert (folder / 'results.png').stat().st_size > 5000
    rows = list(csv.DictReader((folder / 'results.csv').open()))
    assert [(row['arm'], row['seed']) for row in rows[:6]] == [('plain', str(k)) for k in range(5)] + [
        ('more images', '0')]
    assert {row['images'] for row in rows} == {'160', '1400'}
    assert {'epochs', 'top1', 'top5', 'nll', 'train_loss', 'parameters', 'budget', 'timm_asr'} <= set(rows[0])


def test_the_format_of_the_dia_paper(finished, capsys):
    assert command(*finished, '--report', '--dia-format') == 0
    shown = capsys.readouterr().out
    assert re.search(r'\| more images +\| \d\d\.\d\d±\d\.\d\d +\| 0\.0\d\d\* +\|', shown)
    assert re.search(r'\| plain +\| \d\d\.\d\d±\d\.\d\d +\| - +\|', shown)


def test_a_run_is_that_of_train_and_is_measured_at_its_last_epoch_alone(finished):
    folder = finished[1] / 'plain-0'
    assert {path.name for path in folder.iterdir() if path.name != '.lock'} == {
        'options.yaml', 'result.json', 'args.yaml', 'summary.csv', 'last.pth.tar'}
    rows = list(csv.DictReader((folder / 'summary.csv').open()))
    assert [row['epoch'] for row in rows] == ['3']
    assert json.loads((folder / 'result.json').read_text())['top1'] == float(rows[0]['eval_top1'])


def test_the_tables_by_hand(tmp_path):
    plan = read_plan(write(tmp_path / 'plan.yaml', ARMS, [0, 1, 2]))
    values = {'plain': (1.0, 2.0, 4.0), 'more images': (8.0, 9.0, 8.5), 'other images': (2.0, 3.0, 3.5)}
    rows = [{'arm': name, 'seed': seed, 'status': 'done', 'top1': top1, 'nll': 1.0}
            for name, own in values.items() for seed, top1 in enumerate(own)]
    found = report.comparisons(plan, rows)
    lines = {line['arm']: line for line in report.table(plan, rows, found)}
    assert lines['plain']['top-1, %'] == '2.33 ± 1.53'
    welch, student = (stats.ttest_ind(values['more images'], values['plain'], equal_var=equal).pvalue
                      for equal in (False, True))
    assert lines['more images']['p of it (Holm)'] == f'{welch:.4f} ({2 * welch:.4f})'
    assert report.dia_table(plan, rows, found)[1]['p-value'] == f'{student:.3f}*' != f'{welch:.3f}*'


def test_nothing_is_done_twice(finished, monkeypatch):
    monkeypatch.setattr(runner, 'make_run', pytest.fail)
    assert command(*finished) == 0


def test_an_arm_may_get_a_nicer_name_and_versions_are_named(tmp_path):
    plan, folder = write(tmp_path / 'plan.yaml', {'plain': {}, 'a b': {}}, [0]), tmp_path / 'runs'
    for run in read_plan(plan).runs:
        runner._write_options(run, folder / run.name)
        row = {'arm': run.arm.name, 'seed': 0, 'status': 'done', 'top1': 50.0, 'nll': 1.0, 'torch': run.name}
        (folder / run.name / 'result.json').write_text(json.dumps(row))
    renamed = read_plan(write(plan, {'plain': {}, 'a(b)': {}}, [0]))
    rows = runner.read_results(renamed, folder)
    assert runner.values_of(rows, 'a(b)', 'top1') == {0: 50.0}
    assert 'of several versions' in markdown(renamed, rows)
    assert 'of several versions' not in markdown(renamed, rows[:1])


def test_a_report_is_printed_where_it_cannot_be_written(finished, capsys, monkeypatch):
    monkeypatch.setattr(report, 'write_results', Mock(side_effect=OSError('No space left on device')))
    assert command(*finished, '--report') == 0
    shown = capsys.readouterr()
    assert '15 of 15 runs are done' in shown.out
    assert 'No results.csv and results.png: No space left' in shown.err


def test_processes_of_slurm_share_the_runs_and_not_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')  # joining them would fail: there is no MASTER_ADDR
    monkeypatch.setenv('RANK', '2')
    assert command(write(tmp_path / 'plan.yaml', {'plain': {}, '-SE': {}}, [0], epochs=1), tmp_path / 'runs') == 0


def test_a_worker_that_the_system_kills_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.ProcessPoolExecutor, 'map', Mock(side_effect=BrokenProcessPool))
    with pytest.raises(Stopped, match='a run was killed, perhaps for want of memory'):
        command(write(tmp_path / 'plan.yaml', {'plain': {}}, [0]), tmp_path / 'runs', '--parallel', 2)


def test_two_processes_share_a_folder(tmp_path, monkeypatch):
    plan, folder = write(tmp_path / 'plan.yaml', {'plain': {}}, [0, 1], epochs=1), tmp_path / 'runs'
    hold = checkpoint._hold

    def held(folder):
        if folder.name == 'plain-0':
            raise InUse
        return hold(folder)

    monkeypatch.setattr(checkpoint, '_hold', held)
    with pytest.raises(Stopped, match='1 runs, such as plain-0, are being made by another process'):
        command(plan, folder)
    assert (folder / 'plain-1' / 'result.json').is_file()
    monkeypatch.setattr(checkpoint, '_hold', hold)
    assert command(plan, folder) == 0


def _child(argv, at):
    """Run the command and kill it at the at-th file that is flushed, as kill -9 does."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    count, flush = [0], os.fsync

    def fsync(handle):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(handle)

    checkpoint.os.fsync = fsync
    os._exit(experiment.main(argv))


def _weights(folder):
    return {path.parent.name: torch.load(path, weights_only=True)['state_dict'] for path in folder.glob('*/last*')}


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT], ids=['kill -9', 'interrupt'])
def test_workers_end_with_the_command_that_started_them(tmp_path, number):
    plan = write(tmp_path / 'plan.yaml', ARMS, [0, 1], epochs=500)
    argv = [str(plan), '--output', str(tmp_path / 'runs'), '--parallel', '2']
    process = _CONTEXT.Process(target=_child, args=(argv, None))
    process.start()
    deadline = time.monotonic() + 120
    while len(list((tmp_path / 'runs').glob('*/last.pth.tar'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, number)
    process.join(60)
    while any(Path(f'/proc/{pid}').exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f'/proc/{pid}').exists()]
    assert runner.missing_runs(read_plan(plan), tmp_path / 'runs') == list(read_plan(plan).runs)


@pytest.mark.slow
def test_killed_anywhere_and_started_again_gives_the_same(tmp_path):
    plan = write(tmp_path / 'plan.yaml', {'plain': {}, 'se': {'model': 'resnet20_asr_se'}}, [0, 1], epochs=3)
    codes = []
    for at in (9, 23, None):
        process = _CONTEXT.Process(target=_child, args=([str(plan), '--output', str(tmp_path / 'killed')], at))
        process.start()
        process.join(120)
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 2 + [0]
    assert command(plan, tmp_path / 'whole') == 0
    assert command(plan, tmp_path / 'two', '--parallel', 2) == 0
    expected = runner.read_results(read_plan(plan), tmp_path / 'whole')
    assert len(expected) == 4
    weights = _weights(tmp_path / 'whole')
    for other in ('killed', 'two'):
        assert runner.read_results(read_plan(plan), tmp_path / other) == expected
        found = _weights(tmp_path / other)
        assert all(torch.equal(found[run][key], value) for run in weights for key, value in weights[run].items())


def test_a_run_that_diverges_is_counted_and_not_repeated(tmp_path, capsys):
    plan = write(tmp_path / 'plan.yaml', {'plain': {}, 'wild': {'lr': 1e30, 'sched': 'none'}}, [0], epochs=1)
    assert command(plan, tmp_path / 'runs', '--budget', 0.5) == 0
    assert command(plan, tmp_path / 'runs', '--budget', 0.5, '--report') == 0
    shown = capsys.readouterr().out
    assert '**Budget 0.5**' in shown
    assert re.search(r'\| wild +\| +0 +\|', shown)
    row = next(csv.DictReader((tmp_path / 'runs' / 'results.csv').open()))
    assert (row['budget'], row['images']) == ('0.5', '80')
    with pytest.raises(BadInput, match=r"plain-0 was begun with another decay_epochs \(45.0 instead of None\)"):
        command(plan, tmp_path / 'runs')


def test_faults_are_found_before_the_first_run(tmp_path, capsys):
    plan = write(tmp_path / 'plan.yaml', {'plain': {}, 'odd': {'model': 'resnet21'}}, [0])
    with pytest.raises(BadInput, match=r"arm 'odd': .*resnet20"):
        command(plan, tmp_path / 'runs')
    for odd, sentence in (({'opt_kwargs': {'foo': 1}}, '--opt'), ({'val_split': ''}, 'no images to measure on'),
                          ({'sched': 'plateau'}, 'measures at the end'), ({'sched': 'wsd'}, '--sched wsd'),
                          ({'model': 'wrn52_4', 'last_norm_init': 0.5}, 'last_norm_init')):
        write(plan, {'plain': {}, 'odd': odd}, [0])
        with pytest.raises(BadInput, match=f"arm 'odd': .*{sentence}"):
            command(plan, tmp_path / 'runs')
    write(plan, {'plain': {}, 'odd': {'learning_rate': 1}}, [0])
    with pytest.raises(SystemExit):
        command(plan, tmp_path / 'other')
    assert 'learning_rate' in capsys.readouterr().err
    with pytest.raises(BadInput, match='--output'):
        experiment.main([str(plan)])
    write(plan, {'plain': {}}, [0])
    with pytest.raises(BadInput, match='--device warp: not a device'):
        command(plan, tmp_path / 'fourth', '--device', 'warp')
    assert command(plan, tmp_path / 'other', '--check') == 0  # nothing was begun there
    capsys.readouterr()
    assert command(plan, tmp_path / 'third', '--check') == 0
    assert capsys.readouterr().out == 'plain-0\n'
