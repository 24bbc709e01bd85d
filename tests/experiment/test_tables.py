"""The papers' tables that come with the package: every command is parsed, every model built, without its weights."""

import functools
import json

import pytest
import torch
import yaml

from timm_asr.engine.build import build_model
from timm_asr.engine.commands import train
from timm_asr.experiment.plan import find_plan, list_tables, read_plan

#: Tables of the papers that hold accuracies of classifiers trained by a method of theirs.
EXPECTED = {'asr': (2, 3, 4, 6, 7, 8, 9), 'dia': (3, 4, 6, 7, *range(10, 16)), 'spe': (1, 2, 3, 4), 'ras': (1, 2, 3)}


def test_the_tables_are_all_there():
    assert set(list_tables()) == {f'{paper}_table{number}' for paper, numbers in EXPECTED.items() for number in numbers}


@functools.cache
def _built(model, asr, keywords):
    args = train.parse_args(['--model', model, '--num-classes', '10', *(['--asr', asr] if asr else [])])
    args.model_kwargs = json.loads(keywords)
    with torch.device('meta'):
        return build_model(args, weights=False)


@pytest.mark.slow
@pytest.mark.parametrize('name', list_tables())
def test_every_arm_can_be_trained(name, tmp_path):
    plan = read_plan(find_plan(name))
    assert any(arm.reported is not None for arm in plan.arms)
    for run in plan.runs[:len(plan.arms)]:
        (tmp_path / 'options.yaml').write_text(yaml.safe_dump(run.options))
        args = train.parse_args(['--config', str(tmp_path / 'options.yaml')])
        assert args.epochs in (90, 164, 300)
        assert args.dataset or args.data_dir
        _built(args.model, args.asr, json.dumps(args.model_kwargs, sort_keys=True))


def test_arms_differ():
    """No two arms of a table are the same run under two names."""
    for name in list_tables():
        plan = read_plan(find_plan(name))
        options = [json.dumps(arm.options, sort_keys=True, default=str) for arm in plan.arms]
        assert len(set(options)) == len(options), name
