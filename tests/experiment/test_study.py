"""The study's files are plans that can be trained, and its verdicts follow the rule that was written before."""

import csv
import shutil
import sys

import numpy as np
import pytest
from pages import ROOT

from timm_asr.engine.commands.train import parse_args
from timm_asr.experiment.plan import read_plan
from timm_asr.experiment.runner import check_plan, missing_runs, read_results

sys.path.insert(0, str(ROOT / 'results'))
import study

PLANS = sorted((ROOT / 'results' / 'study').glob('*.yaml'))
SMALL = read_plan(ROOT / 'results' / 'study' / 'small.yaml')


@pytest.mark.parametrize('path', PLANS, ids=[path.stem for path in PLANS])
def test_every_plan_can_be_trained(path, tmp_path):
    check_plan(read_plan(path), tmp_path, parse_args)


def rows(means, seeds=8, deviation=0.5):
    draw = np.random.default_rng(0)
    return [{'arm': arm.name, 'seed': seed, 'status': 'done', 'nll': 1.0,
             'top1': float(draw.normal(means.get(arm.name, 50), deviation))}
            for arm in SMALL.arms for seed in range(seeds)]


def test_a_gain_is_one_over_the_better_control_not_over_plain():
    found = rows({'plain': 33, 'ASR(IE)': 47, 'ASR(SE)': 50, 'SE': 53})
    assert study.better_control(SMALL, found) in study.CONTROLS
    text = study.verdicts(SMALL, found, 'last norm 0', 1.0)
    assert set(text) == {'ASR(SE)', 'ASR(IE)', 'ASR(free)', 'SE'}
    assert [text[arm][0] for arm in ('SE', 'ASR(IE)', 'ASR(SE)')] == ['a gain', 'a loss', 'no gain of 1 point or more']
    assert [text[arm][1][0] for arm in ('SE', 'ASR(IE)')] == ['+', '-']
    noisy = rows({}, seeds=3, deviation=5)
    assert any('not known' in what for what, _ in study.verdicts(SMALL, noisy, 'last norm 0', 1.0).values())


def test_runs_with_a_row_are_not_made_again(tmp_path):
    (tmp_path / 'small' / SMALL.runs[0].name).mkdir(parents=True)  # as a check of the plan leaves it
    assert study.main([str(tmp_path), '--begin']) == 0
    done = read_results(SMALL, tmp_path / 'small')
    with open(ROOT / 'results' / 'study' / 'small.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in done] == rows
    assert len(missing_runs(SMALL, tmp_path / 'small')) == len(SMALL.runs) - len(rows)


def test_the_rounds_of_a_search_come_back_from_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(study, 'HERE', tmp_path)
    (tmp_path / 'study').mkdir()
    (tmp_path / 'study' / 'search.yaml').write_text(
        'base: {model: resnet20, holdout: 5}\narms: {a: {lr: 0.1}, b: {lr: 0.2}, c: {lr: 0.3}}\nseeds: [0, 1]\n'
        'halving: {epochs: [2, 4, 8], keep: 0.5}\n')
    with open(tmp_path / 'study' / 'search.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, ('arm', 'seed', 'status', 'epochs', 'top1'))
        writer.writeheader()
        writer.writerows({'arm': arm, 'seed': seed, 'status': status, 'epochs': epochs, 'top1': top1}
                         for epochs, arms in ((2, {'a': 9.0, 'b': 3.0, 'c': 2.0}), (4, {'b': 5.0, 'c': 6.0}))
                         for arm, top1 in arms.items()  # the best of the first round diverges with its second seed
                         for seed, status in enumerate(('done', 'stopped' if arm == 'a' else 'done')))
    study.begin('search', tmp_path / 'runs')
    found = study.parts('search', tmp_path / 'runs')
    assert [[arm.name for arm in plan.arms] for plan, _ in found] == [['a', 'b', 'c'], ['b', 'c'], ['c']]
    assert [len(missing_runs(plan, folder)) for plan, folder in found] == [0, 0, 2]


def test_only_seeds_that_all_arms_have_are_compared():
    found = rows({}, seeds=3)[:-1]  # seed 2 lacks the last arm
    assert {row['seed'] for row in study.balanced(SMALL, found)} == {0, 1}
    assert '2 seeds, which describe and cannot decide' in study.section(SMALL, found, 1.0)
    assert 'no seed by all arms' in study.section(SMALL, found[:2], 1.0)


@pytest.mark.slow
def test_what_users_read_is_what_the_rows_say(tmp_path, monkeypatch):
    shutil.copytree(study.HERE / 'study', tmp_path / 'results' / 'study')
    shutil.copy(study.HERE / 'study.md', tmp_path / 'results')
    (tmp_path / 'docs' / 'images').mkdir(parents=True)
    shutil.copy(study.PAGE, tmp_path / 'docs')
    (tmp_path / 'runs').mkdir()
    monkeypatch.setattr(study, 'HERE', tmp_path / 'results')
    monkeypatch.setattr(study, 'PAGE', tmp_path / 'docs' / study.PAGE.name)
    assert study.main([str(tmp_path / 'runs')]) == 0
    for path in (study.PAGE, study.HERE / 'study.md'):
        written = ROOT / ('docs' if path == study.PAGE else 'results') / path.name
        assert path.read_text(encoding='utf-8') == written.read_text(encoding='utf-8')
