"""The recipes that come with the package: readable, runnable, and found from anywhere."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import RandomCrop

import timm_asr
from timm_asr.data import Digits, create_dataset
from timm_asr.engine import loaders
from timm_asr.engine.commands import detect
from timm_asr.engine.commands.train import main, parse_args
from timm_asr.engine.options import parse
from timm_asr.engine.recipes import FOLDER, find_recipe, list_recipes
from timm_asr.engine.side_by_side import TURNS
from timm_asr.engine.training import Run
from timm_asr.errors import BadInput


@pytest.mark.parametrize('name', list_recipes())
def test_every_recipe_is_read_and_names_a_model_and_its_source(name):
    args = parse_args(['--config', str(find_recipe(name))])
    assert timm.is_model(args.model)
    assert args.num_classes
    text = (FOLDER / f'{name}.yaml').read_text()
    assert text.startswith('# ')
    if "No paper's recipe" not in text:
        assert re.search(r'Table \d of', text)


@pytest.mark.parametrize('detector', ['fasterrcnn', 'maskrcnn', 'retinanet'])
def test_every_recipe_of_detection_is_read_and_its_rows_have_names(detector):
    args = parse(detect.OPTIONS, {}, ['--config', f'coco_{detector}', '--data-dir', 'coco'])
    assert (args.detector, args.epochs, args.decay_milestones, args.lr) == (detector, 12, [8, 11], None)
    assert args.lr_base == (0.01 if detector == 'retinanet' else 0.02)
    usual = vars(parse(detect.OPTIONS, {}, ['--data-dir', 'coco']))  # without a recipe
    assert {key for key, value in vars(args).items() if value != usual[key]} <= {
        'config', 'detector', 'backbone', 'frozen_bn', 'amp', *(['lr_base'] if detector == 'retinanet' else [])}
    rows = set(re.findall(r'`(resnet50\w*)`', (FOLDER.parents[1] / 'docs' / 'downstream.md').read_text()))
    assert rows >= {'resnet50', args.backbone, *(f'resnet50_{row}' for row in (
        'se', 'eca', 'sge', 'asr_se', 'asr_eca', 'se_asr_se', 'eca_asr_eca', 'dia_lstm', 'dia_lstm_light'))}
    assert all(timm.is_model(name.replace('50', depth)) for name in rows for depth in ('50', '101'))


def test_the_line_switches_off_what_a_file_has_switched_on(tmp_path):
    (tmp_path / 'args.yaml').write_text('model: resnet20\nasr_constant: true\nmodel_kwargs: {asr_constant: true}\n')
    line = ['-c', str(tmp_path / 'args.yaml')]
    assert parse_args(line).model_kwargs == {'asr_constant': True}
    assert parse_args([*line, '--no-asr-constant']).model_kwargs == {}


def test_a_recipe_may_stand_in_the_word_of_its_option(capsys):
    assert parse_args(['-ccifar10_resnet164']).model.startswith('resnet164')
    assert not capsys.readouterr().err  # the recipe digits is not meant


@pytest.mark.parametrize('name', [name for name in list_recipes() if name != 'digits'])
def test_every_recipe_starts(name, tmp_path, monkeypatch):
    """Its data are replaced by noise of the right size; everything else up to the first step is the recipe's."""
    class Noise(torch.utils.data.Dataset):
        transform = None

        def __getitem__(self, index):
            image = Image.fromarray(np.full((40, 40, 3), index, np.uint8))
            return (self.transform(image) if self.transform else image), index % 2

        def __len__(self):
            return 8

    monkeypatch.setattr(loaders, 'create_dataset', lambda *args, **kwargs: Noise())
    argv = ['--config', name, '--workers', '0', '-b', '4', '--device', 'cpu', '--data-dir', str(tmp_path),
            '--output', str(tmp_path), '--img-size', '64' if name.startswith('stl10') else '32']
    args = parse_args(argv)
    args.model_kwargs = {'depth': 2} if 'vit' in args.model else {}
    job = Run(args, argv)
    _, epochs = job.prepare()
    assert epochs == args.epochs
    images, target = next(iter(job.training.loaders.train))
    assert torch.isfinite(job.training.task(images, target)['loss'])
    crops = [step for step in job.training.loaders.train.dataset.transform.transforms if isinstance(step, RandomCrop)]
    assert len(crops) == (args.train_crop_mode == 'pad')
    if crops:
        assert crops[0].padding == args.img_size // 8
    scheduler, optimizer = job.training.scheduler, job.training.optimizer
    if args.sched == 'multistep':
        rates = []
        for epoch in (0, 79, 80, 120, 121):  # the 81st epoch is number 80
            scheduler.step(epoch)
            rates.append(optimizer.param_groups[0]['lr'] / args.lr)
        assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
        assert optimizer.defaults['nesterov'] is False
    if args.sched == 'step':
        scheduler.step(30)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(args.lr / 10)


def test_recipes_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('digits', 'digits.yaml', 'recipes/digits.yaml', str(FOLDER / 'digits.yaml')):
        assert find_recipe(name).samefile(FOLDER / 'digits.yaml')
    (tmp_path / 'digits').write_text('epochs: 1')
    assert find_recipe('digits') == Path('digits')  # a file of one's own goes first
    with pytest.raises(BadInput, match="the nearest is 'digits'"):
        find_recipe('elsewhere/digts.yaml')


def test_digits():
    train, held_out = Digits('train'), create_dataset('digits', split='validation', input_img_mode='L')
    assert (len(train), len(held_out)) == (1438, 359)
    image, label = train[0]
    assert (image.size, image.mode, type(label)) == ((8, 8), 'RGB', int)
    assert held_out[0][0].mode == 'L'
    assert held_out.images.max() == 255
    counts = np.bincount(held_out.labels)
    assert len(counts) == 10
    assert counts.min() >= 35
    pixels = {bytes(image) for image in train.images}
    assert len({bytes(image) for image in held_out.images} & pixels) == 0
    with pytest.raises(ValueError, match='train and validation'):
        Digits('lunch')


@pytest.mark.slow
def test_the_first_run(tmp_path, capsys, monkeypatch):
    """``python train.py`` with fewer epochs and smaller images: the table and every file of it."""
    monkeypatch.setitem(TURNS, 'rounds', 1)
    assert main(['--epochs', '5', '--img-size', '16', '--device', 'cpu', '--output', str(tmp_path)]) == 0
    table = capsys.readouterr().out
    folder, = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} >= {
        'model.safetensors', 'config.json', 'metrics.json', 'summary.csv', 'curve.png', 'attention.png', 'args.yaml',
        'model_best.pth.tar'}
    assert {path.name for path in folder.glob('*.pth.tar')} == {'model_best.pth.tar', 'last.pth.tar'}
    for words in ('top-1 on 359 images', 'largest logit difference', 'parameters', 'training step', 'not trained'):
        assert words in table
    line = next(line for line in table.splitlines() if line.startswith('inference form'))
    assert line.endswith('same network as resnet20')
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['top1'] == metrics['top1_folded'] > 80
    assert metrics['logit_difference_relative'] <= 1e-5
    assert metrics['parameters_folded'] == metrics['parameters_plain'] < metrics['parameters']
    assert min(metrics[f'images_per_second_{name}'] for name in ('model', 'folded', 'plain')) > 0
    fused = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    config = timm.data.resolve_model_data_config(fused)
    assert config['input_size'] == (1, 16, 16)
    transform = timm.data.create_transform(**config)
    held_out = create_dataset('digits', input_img_mode='L')
    images = torch.stack([transform(image) for image, _ in held_out])
    right = (fused(images).argmax(1) == torch.tensor(held_out.labels)).float().mean().item()
    assert 100 * right == pytest.approx(metrics['top1_folded'], abs=0.3)
    parse_args(['--config', str(folder / 'args.yaml')])  # can be repeated
    # Exported again from the checkpoint, it is the same folder.
    again = timm_asr.save_fused(folder / 'model_best.pth.tar', tmp_path / 'again')
    first, second = (json.loads((f / 'config.json').read_text()) for f in (folder, again))
    for one in (first, second):
        del one['timm_asr']['files']['args.yaml']  # the run's own has paths, which no export has
    assert first == second
    assert first['timm_asr']['recipe'] == 'digits'
    assert first['label_names'] == [str(i) for i in range(10)]
    assert (again / 'metrics.json').read_text() == (folder / 'metrics.json').read_text()
