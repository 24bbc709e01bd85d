"""Data of every kind, and what a run tells other programs."""

import csv
import logging
import random
import shutil
import sys
import tarfile
import time
import types
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import timm.data
import torch
import yaml
from PIL import Image

from timm_asr.data import create_dataset, factory
from timm_asr.engine import loaders
from timm_asr.engine.checkpoint import SaveFailed
from timm_asr.engine.commands.train import main, parse_args
from timm_asr.engine.progress import Progress, setup_logging
from timm_asr.engine.seeding import Images, derive_seed, start_epoch
from timm_asr.engine.side_by_side import TURNS
from timm_asr.engine.summary import add_summary, read_summary
from timm_asr.engine.training import Run
from timm_asr.errors import BadInput

MODEL = ['--model', 'resnet20_asr_se', '--num-classes', '3', '--img-size', '16', '-b', '6', '--epochs', '1', '-j', '0',
         '--experiment', 'run', '--no-progress', '--device', 'cpu', '--lr', '0.1']


def train(argv, tmp_path):
    argv = [*MODEL, '--output', str(tmp_path), *map(str, argv)]
    job = Run(parse_args(argv), argv)
    first, epochs = job.prepare()
    with Progress(0, bar=False) as progress:
        for epoch in range(first, epochs):
            job.epoch(epoch, epochs, progress)
    return job


def rows(tmp_path):
    return list(csv.DictReader((tmp_path / 'run' / 'summary.csv').open()))


def test_a_tar_of_images(images, tmp_path):
    with tarfile.open(tmp_path / 'images.tar', 'w') as tar:
        tar.add(images / 'train', 'train')
    job = train(['--data-dir', tmp_path / 'images.tar', '--val-split', ''], tmp_path)
    assert len(job.datasets[0]) == 24
    assert float(rows(tmp_path)[0]['train_loss']) > 0


def test_a_class_map_orders_the_classes(images, tmp_path):
    (tmp_path / 'map.txt').write_text('class2\nclass0\nclass1\n')
    job = train(['--data-dir', images, '--class-map', tmp_path / 'map.txt'], tmp_path)
    assert loaders.classes_of(job.datasets[0]) == {'class2': 0, 'class0': 1, 'class1': 2}


def test_classes_of_both_splits_have_the_same_numbers(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / 'images')
    shutil.rmtree(folder / 'validation' / 'class1')
    with pytest.raises(BadInput, match="'class2', which the training data has as 2 instead of 1: give both"):
        train(['--data-dir', folder], tmp_path)
    (tmp_path / 'map.txt').write_text('class0\nclass1\nclass2\n')
    train(['--data-dir', folder, '--class-map', tmp_path / 'map.txt'], tmp_path)


def test_iterable_data(tmp_path, monkeypatch):
    """A reader that only iterates, as those of hfids/, tfds/ and wds/ do."""
    class Reader:
        epochs = []
        class_to_idx = {}
        root = str(tmp_path)

        def __iter__(self):
            for index in range(14):
                yield Image.fromarray(np.full((20, 20, 3), index, np.uint8)), index % 3

        def __len__(self):
            return 14

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    def create(name, root, split, **kwargs):
        asked.append((name, split, *map(kwargs.get, ('num_samples', 'input_key', 'target_key', 'repeats'))))
        return timm.data.IterableImageDataset('', reader=Reader())

    asked = []
    monkeypatch.setattr(loaders, 'create_dataset', create)
    train(['--dataset', 'wds/x', '--data-dir', tmp_path, '--train-num-samples', 14, '--val-num-samples', 7,
           '--epoch-repeats', 2, '--epochs', 2, '--input-key', 'image', '--target-key', 'class'], tmp_path)
    assert asked == [('wds/x', 'train', 14, 'image', 'class', 2.0), ('wds/x', 'validation', 7, 'image', 'class', None)]
    assert Reader.epochs == [0, 1]
    assert len(rows(tmp_path)) == 2


def test_no_prefetcher_and_pin_mem(images, tmp_path, monkeypatch):
    monkeypatch.setitem(TURNS, 'rounds', 1)
    job = train(['--data-dir', images, '--no-prefetcher', '--mixup', 0.5, '--reprob', 0.5], tmp_path)
    assert isinstance(job.training.loaders.train, torch.utils.data.DataLoader)
    assert job.training.loaders.train.num_workers == job.training.loaders.eval.num_workers == 0
    assert job.training.loaders.mixer is not None
    metrics = job.fuse()
    assert metrics['top1'] == metrics['top1_folded']


def test_wandb_gets_every_row(images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger('timm_asr'), 'propagate', True)
    calls = []
    fake = types.SimpleNamespace(init=lambda **k: calls.append(k), log=lambda row: calls.append(row))
    argv = ['--data-dir', images, '--log-wandb', '--wandb-project', 'p', '--wandb-tags', 'a', 'b',
            '--wandb-resume-id', 'i']
    for module in (fake, None):
        monkeypatch.setitem(sys.modules, 'wandb', module)
        train([*argv, '--overwrite'], tmp_path)
    assert (calls[0]['project'], calls[0]['name'], calls[0]['tags'], calls[0]['id']) == ('p', 'run', ['a', 'b'], 'i')
    assert {'epoch', 'train_loss', 'eval_top1', 'lr'} <= set(calls[1])
    assert 'the package wandb is not installed' in caplog.text


def test_summary_rows_are_replaced_from_their_epoch_on(tmp_path):
    path = tmp_path / 'summary.csv'
    for epoch in range(4):
        add_summary(path, {'epoch': epoch, 'train_loss': epoch / 3, 'lr': 0.1})
    with path.open('a') as file:
        file.write('4,0.1')  # as a kill leaves it
    add_summary(path, {'epoch': 2, 'train_loss': 7.0, 'lr': 0.1})
    assert [row['train_loss'] for row in read_summary(path)] == ['0.0', str(1 / 3), '7.0']
    path.unlink()
    path.mkdir()
    with pytest.raises((SaveFailed, IsADirectoryError)):
        add_summary(path, {'epoch': 0})


def test_seeds_are_unrelated_and_epochs_repeat():
    assert len({derive_seed(*parts) for parts in [(0, 1), (1, 0), (1,), (0, 0, 1)]}) == 4

    class Numbers(torch.utils.data.Dataset):
        transform = None

        def __getitem__(self, index):
            return index, torch.rand(1).item(), random.random(), np.random.rand()

        def __len__(self):
            return 8

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (Numbers()[index] for index in range(8))

    def epochs(which, workers, numpy=True, dataset=Numbers, rank=0):
        numbered = dataset()
        if dataset is Numbers:
            numbered = Images(numbered)
            numbered.seed_workers(3, rank, numpy)
        loader = torch.utils.data.DataLoader(numbered, batch_size=4, shuffle=dataset is Numbers, num_workers=workers,
                                             persistent_workers=workers > 0)
        out = []
        for epoch in which:
            start_epoch(loader, 3, epoch, rank)
            out.append([value.tolist() for batch in loader for value in batch])
        return out

    for how in ({'workers': 0}, {'workers': 2}, {'workers': 2, 'numpy': False}, {'workers': 1, 'dataset': Stream}):
        first, second, third = epochs([0, 1, 2], **how)
        assert first != second != third
        assert epochs([2], **how) == [third]
        assert epochs([1, 0], **how) == [second, first]
        assert epochs([0], rank=1, **how) != [first]
        if how['workers'] == 2:  # a batch each
            assert [a != b for a, b in zip(first[1:4], first[5:], strict=True)] == [True, True, how.get('numpy', True)]


def test_print_config_shows_what_was_found_out_and_opens_no_data(tmp_path, capsys):
    argv = [word for word in MODEL if word not in ('--lr', '0.1')]
    assert main([*argv, '--data-dir', 'nowhere', '--output', str(tmp_path), '--opt', 'adamw', '--print-config']) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown['lr'] == pytest.approx(0.1 * (6 / 256) ** 0.5)
    assert (shown['lr_base_scale'], shown['device']) == ('sqrt', 'cpu')
    assert (shown['input_size'], shown['crop_pct']) == ([3, 16, 16], 1.0)
    assert not (tmp_path / 'run').exists()


def test_processes_that_slurm_starts_are_counted_and_the_first_alone_speaks(monkeypatch, capsys):
    for name, value in (('SLURM_NTASKS', '4'), ('SLURM_PROCID', '3'), ('SLURM_LOCALID', '3')):
        monkeypatch.setenv(name, value)
    argv = [word for word in MODEL if word not in ('--lr', '0.1')]
    assert main([*argv, '--data-dir', 'nowhere', '--print-config']) == 0
    assert yaml.safe_load(capsys.readouterr().out)['lr'] == pytest.approx(0.1 * 4 * 6 / 256)
    assert not logging.getLogger('timm_asr').isEnabledFor(logging.WARNING)
    setup_logging()  # for the tests that follow


def test_a_split_that_is_not_there_names_those_that_are(images):
    for split in ('trian', 'test'):
        with pytest.raises(ValueError, match='its folders are train, validation'):
            create_dataset('', str(images), split)
    assert len(create_dataset('', str(images), 'val')) == 12  # timm takes it for validation
    assert len(create_dataset('', str(images / 'train'), 'validation')) == 24  # a folder of classes is one set
    with pytest.raises(ValueError, match='its folders are class0, class1, class2'):
        create_dataset('', str(images / 'train'), split='trian')
    with pytest.raises(ValueError, match='its folders are train, validation'):
        create_dataset('', str(images), '')
    with pytest.raises(ValueError, match='a folder has whole splits only'):
        create_dataset('', str(images), 'train[:50%]')
    assert len(create_dataset('', str(images / 'train'), '')) == 24
    for split in ('trian', 'train[:50%]'):  # either would be the test images
        with pytest.raises(ValueError, match='the splits train and validation, not '):
            create_dataset('torch/cifar10', str(images), split=split)


def test_classes_that_a_map_leaves_out_are_named(images, tmp_path, caplog):
    (tmp_path / 'map.txt').write_text('class0\nclass1\nClass2\n')
    args = parse_args(['--data-dir', str(images), '--model', 'resnet20', '--class-map', str(tmp_path / 'map.txt')])
    assert len(loaders.open_dataset(args, True, 'RGB')) == 16
    assert '--class-map does not name class2: images of these classes are left out' in caplog.text


def test_data_that_is_there_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(factory, 'FileLock', Mock(side_effect=PermissionError(13, 'Permission denied')))
    monkeypatch.setattr(factory.timm.data, 'create_dataset', lambda *args, **kwargs: [1, 2])
    assert len(create_dataset('torch/cifar10', str(tmp_path), 'train', download=True)) == 2


def test_several_processes_download_one_after_another(tmp_path, monkeypatch):
    running = []

    def download(*args, **kwargs):
        running.append(1)
        time.sleep(0.05)
        assert len(running) == 1
        return running.pop()

    monkeypatch.setattr(timm.data, 'create_dataset', download)
    with ThreadPoolExecutor(4) as pool:
        assert len([*pool.map(lambda _: create_dataset('wds/x', str(tmp_path / 'new'), download=True), range(4))]) == 4


@pytest.mark.parametrize('error', [OSError, SyntaxError, Image.DecompressionBombError])
def test_an_image_that_pillow_does_not_read_is_named(error):
    dataset = MagicMock(filename=lambda index, absolute: index)
    dataset.__len__.return_value, dataset.__getitem__.side_effect = 2, error
    with pytest.raises(BadInput, match='cannot read the image 1'):
        Images(dataset)[1]


def test_training_images_are_not_taken_for_validation(images, tmp_path):
    (tmp_path / 'half').mkdir()
    (tmp_path / 'half' / 'train').symlink_to(images / 'train')
    same = 'training and validation would be on the same images'
    for data, words, said in ((tmp_path / 'half', [], 'its folders are train'), (images / 'train', [], same),
                              (images / 'train', ['--dataset', 'torch/image_folder'], same)):
        with pytest.raises(BadInput, match=said):
            train(['--data-dir', data, *words], tmp_path)


def test_images_of_torchvisions_sets_come_in_the_mode_of_the_model(images, monkeypatch):
    monkeypatch.setattr(factory, 'STL10', lambda root, split, download: [(Image.new('RGB', (9, 9)), split)])
    assert [create_dataset('torch/stl10', 'x', split)[0][1] for split in ('train', 'val')] == ['train', 'test']
    for mode in ('L', 'RGB'):
        found = create_dataset('torch/image_folder', str(images), 'train', input_img_mode=mode)
        image, label = found[0]
        assert (image.mode, label, len(found), len(found.classes)) == (mode, 0, 24, 3)
        found.transform = lambda image: image.mode
        assert found[0] == (mode, 0)
