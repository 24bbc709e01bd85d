"""mini-ImageNet out of a drawn ImageNet folder, by command."""

import shutil

import pytest
from timm.data import create_dataset

from timm_asr.data.mini_imagenet import CLASSES
from timm_asr.engine.commands import run_command


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp('imagenet')
    for name, count in (('n01', 620), ('n02', 600), ('n03', 5)):
        (folder / 'train' / name).mkdir(parents=True)
        for number in range(count):
            (folder / 'train' / name / f'{name}_{number}.JPEG').write_text(f'{name} {number}')
    (folder / 'classes.txt').write_text('n01\nn02\n')
    return folder


def make(imagenet, output, *words):
    line = ['mini-imagenet', '--data-dir', str(imagenet), '-o', str(output), '--no-progress', *map(str, words)]
    return run_command('data', line, 'timm-asr data')


def drawn(folder):
    return {path.relative_to(folder) for path in folder.rglob('*.JPEG')}


def test_the_split_is_whole_disjoint_and_drawn_by_the_seed(imagenet, tmp_path):
    for output, words in (('links', []), ('copies', ['--copy']), ('other', ['--seed', 1])):
        assert make(imagenet, tmp_path / output, '--classes', imagenet / 'classes.txt', *words) == 0
    links, copies, other = (drawn(tmp_path / name) for name in ('links', 'copies', 'other'))
    assert links == copies != other
    counts = [sum(path.parts[:2] == (split, name) for path in links)
              for split in ('train', 'val') for name in ('n01', 'n02')]
    assert counts == [500, 500, 100, 100]
    assert len({path.name for path in links}) == 1200
    for path in links:
        assert (tmp_path / 'links' / path).is_symlink()
        assert not (tmp_path / 'copies' / path).is_symlink()
        assert (tmp_path / 'links' / path).read_text() == (tmp_path / 'copies' / path).read_text()
    assert len(create_dataset('', str(tmp_path / 'links'), split='val')) == 200


@pytest.mark.parametrize(('classes', 'sentence'), [
    (None, 'has no folder for 100 of 100 classes: n01532829, '), ('n01 n09', 'has no folder for 1 of 2 classes: n09'),
    ('n01 n03', 'has 5 images, fewer than 600'), ('n01 n01', 'names a class twice')])
def test_what_is_missing_is_said_and_nothing_is_written(imagenet, tmp_path, capsys, classes, sentence):
    (tmp_path / 'classes.txt').write_text(classes or '')
    words = ['--classes', tmp_path / 'classes.txt'] if classes else []
    assert make(imagenet, tmp_path / 'out', *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_an_interrupt_leaves_no_half_a_set(imagenet, tmp_path, monkeypatch):
    copyfile, copied = shutil.copyfile, []

    def interrupted(source, target):
        copied.append(source)
        if len(copied) == 700:
            raise KeyboardInterrupt
        copyfile(source, target)

    monkeypatch.setattr(shutil, 'copyfile', interrupted)
    for _ in range(2):
        make(imagenet, tmp_path / 'out', '--classes', imagenet / 'classes.txt', '--copy')
        assert (tmp_path / 'out').exists() == (len(copied) > 700)
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    assert len(drawn(tmp_path / 'out')) == 1200


def test_another_folder_is_left_alone(imagenet, tmp_path, capsys):
    assert make(imagenet, tmp_path, '--classes', imagenet / 'classes.txt') == 0
    assert make(imagenet, tmp_path, '--classes', imagenet / 'classes.txt') == 2
    assert 'is no empty folder' in capsys.readouterr().err
    assert len(set(CLASSES)) == 100
