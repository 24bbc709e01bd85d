"""Images in memory: the same batches as timm's loader, in distribution; nothing else is held there."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from train_helpers import make_images

from timm_asr.engine import memory
from timm_asr.engine.commands.train import parse_args
from timm_asr.engine.memory import MemoryLoader
from timm_asr.engine.seeding import start_epoch
from timm_asr.engine.training import Run
from timm_asr.errors import BadInput


@pytest.fixture
def archive(tmp_path):
    """Ten images of 8x8 whose pixels all differ, 1,000 times over, so that every crop and flip can be told."""
    pixels = np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3) + 1
    images = np.stack([np.roll(pixels, k) for k in range(10)])
    path = tmp_path / 'a.npz'
    np.savez(path, x_train=np.tile(images, (100, 1, 1, 1)), y_train=np.tile(np.arange(10), 100)[:, None],
             x_test=images, y_test=np.arange(10))
    return path


def loaders(path, tmp_path, *more, in_memory=True, monkeypatch=None):
    if not in_memory:
        monkeypatch.setattr(memory, 'LARGEST', 0)
    argv = ['--dataset', f'npz:{path}', '--model', 'resnet20', '--img-size', '8', '-b', '100', '-vb', '3', '-j', '0',
            '--train-crop-mode', 'pad', '--color-jitter', '0', '--output', str(tmp_path), '--experiment', 'run',
            '--epochs', '3', '--warmup-epochs', '0', '--lr', '0.1', '--device', 'cpu', *map(str, more)]
    run = Run(parse_args(argv), argv)
    found = run.training.loaders
    assert isinstance(found.train, MemoryLoader) == isinstance(found.eval, MemoryLoader) == in_memory
    return found


def outcomes(loader):
    """How often each (label, corner and order of the pixels) came."""
    count = Counter()
    for epoch in range(4):
        start_epoch(loader, 1, epoch)
        for images, labels in loader:
            count.update(zip(labels.tolist(), (image.numpy().tobytes() for image in images), strict=True))
    return count


def test_crops_and_flips_have_the_distribution_of_torchvision(archive, tmp_path, monkeypatch):
    found = outcomes(loaders(archive, tmp_path).train)
    expected = outcomes(loaders(archive, tmp_path, in_memory=False, monkeypatch=monkeypatch).train)
    assert sum(found.values()) == sum(expected.values()) == 4000
    assert set(found) == set(expected)
    assert len(found) == 10 * 18  # 3 x 3 places with a pixel of padding, flipped or not; the numbers are equal too
    assert stats.chisquare(list(found.values())).pvalue > 1e-3
    assert stats.chisquare(list(expected.values())).pvalue > 1e-3


def test_epochs_repeat_and_differ(archive, tmp_path):
    loader = loaders(archive, tmp_path).train

    def epoch(number):
        start_epoch(loader, 7, number)
        return [batch[0] for batch in loader]

    first, second, again = epoch(0), epoch(1), epoch(0)
    assert len(first) == len(loader) == 10
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, second))
    assert sorted(torch.cat([labels for _, labels in loader]).tolist()) == sorted(list(range(10)) * 100)


def test_validation_gives_the_same_numbers(archive, tmp_path, monkeypatch):
    more = ('--crop-pct', 0.8)
    found = list(loaders(archive, tmp_path, *more).eval)
    expected = list(loaders(archive, tmp_path, *more, in_memory=False, monkeypatch=monkeypatch).eval)
    assert len(found) == 4  # the last one is not full
    for a, b in zip(found, expected, strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize('more', [
    ('--train-crop-mode', 'rrc'), ('--color-jitter', 0.4), ('--aa', 'rand-m5'), ('--reprob', 0.5), ('--mixup', 0.5),
    ('--no-prefetcher',), ('--vflip', 0.5)])
def test_what_cannot_be_done_a_batch_at_a_time_is_done_by_timm(archive, tmp_path, more):
    with pytest.raises(AssertionError):
        loaders(archive, tmp_path, *more)


def test_digits_and_folders_of_small_images_stay_in_memory_too(tmp_path):
    loader = loaders('unused', tmp_path, '--dataset', 'digits', '--in-chans', 1, '--img-size', 32).train
    assert loader.images.shape == (1438, 1, 40, 40)
    images = make_images(tmp_path / 'images', size=8)
    argv = ['--dataset', '', '--data-dir', images, '-b', 6, '--num-classes', 3]
    loader = loaders('unused', tmp_path, *argv).train
    assert len(loader.labels) == 24
    # Larger ones are resized first, by timm's own transform.
    loader = loaders('unused', tmp_path, *argv, '--img-size', 16).train
    assert loader.images.shape == (24, 3, 20, 20)


def test_images_to_train_on_and_images_held_out(archive, tmp_path):
    parts = []
    for train in (300, 600):
        found = loaders(archive, tmp_path, '--train-images', train, '--holdout', 200)
        parts.append((found.train.dataset.indices, found.eval.dataset.indices))
        assert len(found.train.labels) == train
        assert len(found.eval.labels) == 200
        assert found.eval.pad == 0
    (small, held_out), (large, again) = parts
    assert set(small) < set(large)
    assert held_out == again
    assert not set(large) & set(held_out)
    assert len(loaders(archive, tmp_path, '--holdout', 200, '--train-images', 0.25).train.labels) == 200
    other = loaders(archive, tmp_path, '--holdout', 200, '--split-seed', 1)
    assert len(other.train.labels) == 800
    assert other.eval.dataset.indices != held_out
    with pytest.raises(BadInput, match='900 images to train on and 200 to hold out are not to be had from 1000'):
        loaders(archive, tmp_path, '--train-images', 900, '--holdout', 200)


def test_grey_images_with_an_axis_for_their_one_channel(tmp_path):
    arrays = {'x': np.zeros((9, 8, 8, 1), np.uint8), 'y': np.arange(9) % 2}
    np.savez(tmp_path / 'a.npz', **{f'{key}_{part}': a for key, a in arrays.items() for part in ('train', 'test')})
    assert loaders(tmp_path / 'a.npz', tmp_path, '--batch-size', 4).train.images.shape == (9, 3, 10, 10)


@pytest.mark.parametrize(('arrays', 'reason'), [
    ({'x': 1}, "no array 'x_train', only x"),
    ({'x_train': np.zeros((2, 8, 8, 3)), 'y_train': np.zeros(2)}, 'in float64'),
    ({'x_train': np.zeros((2, 8, 8, 3), np.uint8), 'y_train': np.zeros(3)}, 'with 3 labels'),
    ({'x_train': np.zeros((2, 3, 8, 8), np.uint8), 'y_train': np.zeros(2, int)}, r'\(N, H, W, C\) in uint8'),
    ({'x_train': np.zeros((2, 8, 8), np.uint8), 'y_train': np.array([-1, 1])}, 'whole numbers from 0 on'),
    ({'x_train': np.zeros((2, 8, 8), np.uint8), 'y_train': np.array(['a', 'b'])}, 'whole numbers from 0 on')])
def test_archives_that_are_not_images(tmp_path, arrays, reason):
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(BadInput, match=reason):
        loaders(tmp_path / 'a.npz', tmp_path)


def test_archives_that_are_not_whole(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, x_train=np.arange(6400, dtype=np.uint8).reshape(100, 8, 8), y_train=np.arange(100) % 5)
    whole = path.read_bytes()
    for damaged in (b'', whole[:99], whole[:60] + bytes(40) + whole[100:]):  # the last cannot be decompressed
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match='no whole NumPy archive'):
            loaders(path, tmp_path)
