"""The papers' tables that come with the package: every command is parsed, every model built, without its weights."""

import functools
import json

import pytest
import torch

from timm_asr.checkpoints.source import data_config_of
from timm_asr.engine.build import build_model
from timm_asr.engine.commands import train
from timm_asr.errors import BadInput
from timm_asr.experiment import runner
from timm_asr.experiment.plan import find_plan, list_tables, read_plan

#: Tables of the papers that hold accuracies of classifiers trained by a method of theirs.
EXPECTED = {'asr': (2, 3, 4, 6, 7, 8, 9), 'dia': (3, 4, 6, 7, *range(10, 16)), 'spe': (1, 2, 3, 4), 'ras': (1, 2, 3)}

#: The sum of the accuracies that each table prints, as its file has them, proofread against the papers.
PRINTED = {
    'asr_table2': 1896.0, 'asr_table3': 4928.96, 'asr_table4': 2456.82, 'asr_table6': 1068.1, 'asr_table7': 1206.85,
    'asr_table8': 1052.28, 'asr_table9': 1113.4, 'dia_table10': 381.92, 'dia_table11': 609.56, 'dia_table12': 380.69,
    'dia_table13': 306.59, 'dia_table14': 219.97, 'dia_table15': 456.99, 'dia_table3': 7096.74, 'dia_table4': 5237.08,
    'dia_table6': 1725.95, 'dia_table7': 1898.9, 'ras_table1': 3549.98, 'ras_table2': 1025.23, 'ras_table3': 1114.78,
    'spe_table1': 1186.74, 'spe_table2': 1351.94, 'spe_table3': 1022.51, 'spe_table4': 1527.33}
#: Learning rate, batch, decay, epochs and steps of the papers' SGD; STL-10 in the ASR and RAS papers has batches of 16.
CIFAR, STL = (0.1, 128, 1e-4, 164, 'multistep', [81, 122]), (0.0125, 16, 1e-4, 164, 'multistep', [81, 122])


def test_the_tables_are_all_there():
    assert set(list_tables()) == {f'{paper}_table{number}' for paper, numbers in EXPECTED.items() for number in numbers}
    with pytest.raises(BadInput, match="no experiment at asr_tabel2, did you mean 'asr_table2'"):
        find_plan('asr_tabel2')


@functools.cache
def _built(model, asr, keywords):
    args = train.parse_args(['--model', model, '--num-classes', '10', *(['--asr', asr] if asr else [])])
    args.model_kwargs = json.loads(keywords)
    with torch.device('meta'):
        return build_model(args, weights=False)


@pytest.mark.slow
@pytest.mark.parametrize('name', list_tables())
def test_every_arm_can_be_trained(name, tmp_path, monkeypatch):
    """And what is compared goes through the same: images, batches, learning rate, epochs."""
    plan, found = read_plan(find_plan(name)), []

    def build(args, weights):
        model = _built(args.model, args.asr, json.dumps(args.model_kwargs, sort_keys=True))
        found.append((args, data_config_of(model, vars(args))))
        return model

    monkeypatch.setattr('timm_asr.engine.build.build_model', build)
    runner.check_plan(plan, tmp_path, train.parse_args)
    assert round(sum(arm.reported or 0 for arm in plan.arms), 2) == PRINTED[name]
    rows = {}
    for arm, (args, images) in zip(plan.arms, found, strict=True):
        batch, data = args.batch_size * args.grad_accum_steps, args.dataset or args.data_dir
        rows[arm.name] = args.lr, batch, args.epochs, data, images
        if data.startswith('torch/'):
            assert (args.lr, batch, args.weight_decay, args.epochs, args.sched, args.decay_milestones) == (
                STL if data == 'torch/stl10' and name != 'dia_table6' else CIFAR)
            assert (args.opt, args.momentum) == ('sgd', 0.9)
    assert all(row[2] in (90, 164, 300) and row[3] for row in rows.values())
    assert all(rows[arm.name] == rows[arm.versus] for arm in plan.arms if arm.versus)
    if name == 'asr_table2':
        assert (rows['ResNet-50'][:2], rows['ViT-S'][:2]) == ((0.1, 256), (1e-3, 1024))


def test_arms_differ():
    """No two arms of a table are the same run under two names, and its seeds are enough to tell any two apart."""
    for name in list_tables():
        plan = read_plan(find_plan(name))
        assert not plan.undecidable, name
        options = [json.dumps(arm.options, sort_keys=True, default=str) for arm in plan.arms]
        assert len(set(options)) == len(options), name
