"""What a plan says, and what is wrong with one."""

import pytest
import yaml

from timm_asr.engine.commands.train import parse_args
from timm_asr.errors import BadInput
from timm_asr.experiment.plan import _DEFAULTS, read_plan

PLAN = {
    'name': 'x', 'baseline': 'plain', 'seeds': [0, 1, 2, 3],
    'base': {'config': 'cifar10_resnet164', 'epochs': 40, 'decay_milestones': [20, 30],
             'opt_kwargs': {'foreach': True}},
    'arms': {'plain': {'model': 'resnet20'}, 'ASR(SE)': {'model': 'resnet20_asr_se', 'model-kwargs': {'asr_depth': 2}},
             'other data': {'model': 'resnet20', 'versus': 'ASR(SE)', 'reported': 93.5}}}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / 'plan.yaml'
        path.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
        return path
    return write


def test_arms_over_a_base_over_a_recipe(write):
    plan = read_plan(write())
    plain, asr, other = plan.arms
    assert plain.options['lr'] == 0.1  # of the recipe
    assert plain.options['epochs'] == 40  # of the base
    assert plain.options['opt_kwargs'] == {'nesterov': False, 'foreach': True}
    assert asr.options['model_kwargs'] == {'asr_depth': 2}
    assert (plain.versus, asr.versus, other.versus, other.reported) == ('', 'plain', 'ASR(SE)', 93.5)
    assert [run.name for run in plan.runs[:4]] == ['plain-0', 'ASR_SE-0', 'other_data-0', 'plain-1']
    assert plan.runs[4].options['seed'] == 1
    assert plan.runs[0].options['val_interval'] > 10 ** 5  # nothing is chosen by what validation says


def test_another_arm_to_compare_with(write):
    assert [arm.versus for arm in read_plan(write(), versus='ASR(SE)').arms] == ['ASR(SE)', '', 'ASR(SE)']
    with pytest.raises(BadInput, match=r"--versus SE: the arms are 'plain', 'ASR\(SE\)'"):
        read_plan(write(), versus='SE')


def test_too_few_seeds_to_decide_are_named(write):
    assert read_plan(write(seeds=[0, 1, 2, 3, 4])).undecidable == ''  # 2 of 252 ways, twice
    assert 'below 0.057' in read_plan(write()).undecidable  # 2 of 70 ways, twice
    assert read_plan(write(seeds=[0, 1, 2])).undecidable.startswith(
        'With 3 seeds an arm and 2 comparisons no corrected permutation p can be below 0.2:')
    assert 'With 1 seed an arm' in read_plan(write(), 0.25).undecidable
    assert read_plan(write(baseline='', seeds=[0], arms={'plain': {}})).undecidable == ''


def test_a_budget_scales_epochs_images_and_seeds(write):
    plan = read_plan(write(), 0.25)
    options = plan.arms[0].options
    assert (options['epochs'], options['decay_milestones'], options['train_images']) == (10, [5, 8], 0.25)
    assert plan.seeds == (0,)
    assert read_plan(write(), 0.3).seeds == (0, 1)
    assert plan.budget == 0.25
    assert read_plan(write(base={'train_images': 1000, 'epochs': 3}), 0.5).arms[0].options['train_images'] == 500
    assert read_plan(write(base={'train_images': 0.5}), 0.5).arms[0].options['train_images'] == 0.25
    said = {key: value for key, value in vars(parse_args(['--model', 'resnet20'])).items() if key in _DEFAULTS}
    assert said == _DEFAULTS
    for epochs, warmup in ((100, 1), (20, 0)):  # a warm-up stays, but not for the only epoch
        assert read_plan(write(base={'epochs': epochs}), 0.05).arms[0].options['warmup_epochs'] == warmup
    fraction = {'train_images': '1e4', 'sched': 'step', 'epochs': '3e2', 'decay_epochs': 2.4}
    options = read_plan(write(base=fraction), 0.5).arms[0].options
    assert (options['train_images'], options['epochs'], options['decay_epochs']) == (5000, 150, 1.2)
    for key, said in (('train_images', 'many'), ('epochs', 'many'), ('decay_milestones', '30, 60')):
        with pytest.raises(BadInput, match=f"yaml: {key} takes numbers, not '{said}'"):
            read_plan(write(base={key: said}), 0.5)
    for budget in (0, 1.5):
        with pytest.raises(BadInput, match='--budget'):
            read_plan(write(), budget)


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'arm': {}}, "no 'arm', did you mean 'arms'; it has name, base"),
    ({'arms': []}, 'arms one of names'), ({'arms': {'a': 3}}, 'arms one of names'),
    ({'seeds': 3}, 'list of whole numbers'), ({'seeds': [0.5]}, 'list of whole numbers'),
    ({'baseline': 'plan'}, "no arm 'plan' to compare 'plain' with, did you mean 'plain'"),
    ({'arms': {'a b': {}, 'a_b': {}}, 'baseline': ''}, 'share a folder'),
    ({'base': {'config': 'cifar10_resnet165'}}, 'cifar10_resnet164')])
def test_what_is_wrong_is_said(write, changes, reason):
    with pytest.raises(BadInput, match=reason):
        read_plan(write(**changes))
