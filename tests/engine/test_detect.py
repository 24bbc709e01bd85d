"""Detectors trained by command on a drawn set."""

import csv
import json
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from pages import ROOT
from safetensors.torch import load_file
from train_helpers import python

from timm_asr.detection import CocoSet, create_detector
from timm_asr.engine import detecting
from timm_asr.engine.commands import run_command
from timm_asr.errors import BadInput

pytest.importorskip('faster_coco_eval', reason='the extra `detection` is not installed')
sys.path.insert(0, str(ROOT / 'examples'))
from draw_coco import draw_coco

SLIM = ['--backbone-kwargs', 'layers=(1,1,1,1)', 'channels=(16,16,32,32)', '--fpn-channels', '32',
        '--detector-kwargs', 'min_size=64', 'max_size=64', 'rpn_post_nms_top_n_test=30', 'rpn_post_nms_top_n_train=60',
        'box_batch_size_per_image=32', 'box_detections_per_img=10', '--workers', '0', '--no-progress',
        '--batch-size', '4']


def detect(folder, *words):
    places = ['--data-dir', str(folder / 'drawn'), '--output', str(folder)]
    return run_command('detect', [*places, *SLIM, *map(str, words)], 'timm-asr detect')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('detect')
    draw_coco(folder / 'drawn', train=8, val=5, side=64)
    return folder


@pytest.mark.slow
def test_resumed_is_as_if_never_stopped(drawn):
    common = ['--detector', 'maskrcnn', '--backbone', 'resnet18_asr_se', '--warmup-steps', 2, '--epochs', 2,
              '--decay-milestones', 1, '--backbone-kwargs', 'layers=(1,1,1,1)', 'channels=(8,8,8,8)', 'rd_ratio=0.5']
    assert detect(drawn, *common, '--experiment', 'whole', '--checkpoint-hist', 2) == 0
    folder = drawn / 'parts'
    assert detect(drawn, *common, '--experiment', 'parts', '--resume', drawn / 'whole' / 'checkpoint-0.pth.tar') == 0
    whole, parts = (torch.load(drawn / name / 'last.pth.tar')['state_dict'] for name in ('whole', 'parts'))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['folded'] == pytest.approx(metrics['trained'], abs=1e-3)
    assert metrics['parameters_folded'] < metrics['parameters']
    told = json.loads((folder / 'detector.json').read_text())
    assert told.pop('trained')['backbone'] == 'resnet18_asr_se'
    assert told.pop('categories') == {'1': '0', '2': '1', '3': '2'}
    plain = create_detector(told.pop('detector'), told.pop('backbone'), **told.pop('detector_kwargs'), **told)
    plain.load_state_dict(load_file(folder / 'detector.safetensors'), strict=True)
    assert (folder / 'detector.safetensors').stat().st_mode & 0o044
    assert (drawn / 'whole' / 'curve.png').stat().st_size > 5000


@pytest.mark.slow
def test_torchrun(drawn):
    """Two processes, of which one has an image more, give the figures that the first one gives alone at the end."""
    python('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'timm_asr', 'detect',
           '--data-dir', drawn / 'drawn', '--output', drawn, *SLIM, '--detector', 'maskrcnn', '--backbone',
           'resnet18_asr_se', '--epochs', 1, '--warmup-steps', 2, '--experiment', 'two')
    row, = csv.DictReader((drawn / 'two' / 'summary.csv').open())
    alone = json.loads((drawn / 'two' / 'metrics.json').read_text())['trained']
    assert {name: float(row[f'eval_{name}']) for name in alone} == pytest.approx(alone, abs=1e-6)
    assert alone['AR100'] > 0
    assert alone['mask_AR100'] > 0


@pytest.mark.slow
def test_learns_to_find_digits(tmp_path):
    draw_coco(tmp_path / 'drawn', train=120, val=24, side=64)
    assert detect(tmp_path, '--backbone', 'resnet18_asr_se', '--epochs', 3, '--warmup-steps', 20, '--lr', 0.02,
                  '--decay-milestones', 2, '--experiment', 'run') == 0
    assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['folded']['AP50'] > 0.5


def test_figures_are_measured_in_float32(monkeypatch):
    """In float16 torchvision's suppression no longer tells boxes apart from COCO's class 49 on."""
    def evaluate(*args, **kwargs):
        assert not torch.is_autocast_enabled('cpu')
        return {'bbox': {'AP': 0.5}, 'segm': {'AP': 0.4}}

    monkeypatch.setattr(detecting, 'evaluate_coco', evaluate)
    cast, datasets = partial(torch.autocast, 'cpu', torch.bfloat16), (None, SimpleNamespace(coco=0))
    job = SimpleNamespace(autocast=cast, datasets=datasets)
    assert detecting.DetectionRun.figures(job, None, None) == {'AP': 0.5, 'mask_AP': 0.4}


def test_outputs_follow_the_largest_category_and_warm_up_counts_updates(drawn, monkeypatch):
    data = CocoSet(drawn / 'drawn' / 'train2017', drawn / 'drawn' / 'annotations' / 'instances_train2017.json')
    data.coco.cats[5] = data.coco.cats.pop(3)
    monkeypatch.setattr(detecting, 'open_set', Mock(return_value=data))
    monkeypatch.setattr(detecting, 'resolve_learning_rate', stop := Mock(side_effect=BadInput('seen')))
    assert detect(drawn, '--warmup-steps', 6, '--grad-accum-steps', 2, '--batch-size', 7) == 2
    args, _ = stop.call_args.args
    assert (args.num_classes, args.warmup_epochs) == (5, 12)  # the eighth image is no batch of its own


@pytest.mark.parametrize(('words', 'sentence'), [
    (['--train-split', 'train2018'], 'There is no folder of images at '), (['--backbone', 'resnet18x'], 'resnet18x'),
    (['--detector-kwargs', 'min_sice=3'], "has no keyword 'min_sice'"),
    (['--epochs', '0'], '--epochs must be at least 1'), (['--amp', '--amp-dtype', 'bfloat16'], 'take float16'),
    (['--detector', 'retinanet', '--backbone', 'resnet20', '--detector-kwargs', 'min_size=64', '--backbone-kwargs',
      'layers=(1,1,1)'], 'choose among them with strides=')])
def test_bad_input_is_one_sentence(words, sentence, drawn, capsys):
    assert detect(drawn, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('timm-asr detect: error: ')
    assert sentence in error
