"""Successive halving: fewer arms for longer, chosen on held-out images, and resumable as any experiment."""

import csv

import pytest
from test_runner import command
from test_runner import write as write_plan

from timm_asr.errors import BadInput
from timm_asr.experiment import search
from timm_asr.experiment.plan import read_plan

HALVING = {'epochs': [1, 2, 4], 'keep': 0.5}


def write(path, holdout=300, halving=HALVING):
    arms = {'plain': {}, 'slow': {'lr': 1e-6}, 'wild': {'lr': 1e30, 'sched': 'none'}, 'few': {'train_images': 40}}
    return write_plan(path, arms, [0, 1], halving, train_images=1000, holdout=holdout)


def test_the_best_arm_survives_and_is_trained_longest(tmp_path, capsys, monkeypatch):
    plan = write(tmp_path / 'plan.yaml')
    assert command(plan, tmp_path / 'runs') == 0
    shown = capsys.readouterr().out
    rounds = search.rounds(read_plan(plan), tmp_path / 'runs')
    assert [len(part.arms) for part, _ in rounds] == [4, 2, 1]
    assert [part.arms[0].options['epochs'] for part, _ in rounds] == [1, 2, 4]
    assert rounds[-1][0].arms[0].name == 'plain'
    assert 'wild' not in {arm.name for arm in rounds[1][0].arms}
    assert shown.count('held-out top-1') == 3
    assert '| wild  | stopped ' in shown
    monkeypatch.setattr('timm_asr.experiment.runner.make_run', pytest.fail)
    assert command(plan, tmp_path / 'runs') == 0  # nothing is done twice
    (tmp_path / 'runs' / 'round2' / 'plain-1' / 'result.json').unlink()
    assert command(plan, tmp_path / 'runs', '--report') == 0
    assert 'round 2: 2 epochs: 1 of 4 runs are missing.' in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / 'runs' / 'results.csv').open(newline='')))
    assert [row['epochs'] for row in rows] == ['1'] * 8 + ['2'] * 3
    assert (tmp_path / 'runs' / 'results.png').is_file()
    with pytest.raises(BadInput, match='compare arms, and a search ranks them'):
        command(plan, tmp_path / 'runs', '--report', '--dia-format')


def test_a_search_needs_held_out_images_and_rounds(tmp_path):
    with pytest.raises(BadInput, match='held out of the training set'):
        read_plan(write(tmp_path / 'plan.yaml', holdout=0))
    with pytest.raises(BadInput, match='epochs of each round'):
        read_plan(write(tmp_path / 'plan.yaml', halving={'epochs': 3}))
    plan = read_plan(write(tmp_path / 'plan.yaml', halving={'epochs': [8, 20]}), budget=0.5)
    (part, _), = search.rounds(plan, tmp_path / 'runs')
    assert plan.halving == (4, 10)
    assert [part.arms[0].options[key] for key in ('epochs', 'decay_epochs', 'train_images')] == [4, 90, 500]
