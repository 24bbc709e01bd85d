"""A folder is there whole or not at all, wherever a kill falls; the list in it says what belongs to it."""

import json
import os

import pytest
import timm
from export_helpers import digits_model, our_checkpoint
from helpers import randomize

from timm_asr import save_fused
from timm_asr.checkpoints.provenance import file_sha256
from timm_asr.checkpoints.read import read_config
from timm_asr.errors import BadInput
from timm_asr.export import place
from timm_asr.export.place import list_in_manifest


class Kill(BaseException):
    """What a kill is to the code: nothing after it runs. (The folder beside may stay, as after a real one.)"""


def model(seed):
    return randomize(timm.create_model('resnet20_asr_se', num_classes=3, layers=(1, 1, 1)), seed)


def manifest_of(folder):
    return read_config(folder)['timm_asr']['files']


def state(folder):
    """(labels, weights) that timm would load together; None where it would load nothing."""
    if not (folder / 'config.json').is_file():
        return None
    config = json.loads((folder / 'config.json').read_text())
    return config['label_names'][0], config['timm_asr']['weights_sha256'] == file_sha256(folder / 'model.safetensors')


@pytest.mark.parametrize('beside', [False, True])
def test_a_kill_at_any_rename_never_mixes_two_exports(tmp_path, monkeypatch, beside):
    folder = tmp_path / 'net'
    replace = os.replace
    for last in range(12):
        if not (folder / 'config.json').is_file():
            save_fused(model(1), folder, label_names=['old', 'b', 'c'], check=False, overwrite=True)
        if beside:
            (folder / 'last.pth.tar').write_bytes(b'a run')
        calls = iter(range(100))

        def killed(source, target, calls=calls, last=last):
            if next(calls) == last:
                raise Kill
            replace(source, target)
        monkeypatch.setattr(place.os, 'replace', killed)
        try:
            save_fused(model(2), folder, label_names=['new', 'b', 'c'], check=False, overwrite=True)
        except Kill:
            pass
        else:
            assert state(folder) == ('new', True)
            break
        finally:
            monkeypatch.setattr(place.os, 'replace', replace)
        assert state(folder) in (None, ('old', True), ('new', True))
        if beside:
            assert (folder / 'last.pth.tar').read_bytes() == b'a run'
    else:
        pytest.fail('it never came to an end')
    assert last  # at least one rename was killed


def test_only_the_folder_is_left(tmp_path):
    save_fused(model(1), tmp_path / 'net', keep_trainable=True, check=False)
    save_fused(model(2), tmp_path / 'net', check=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ['net']
    assert not (tmp_path / 'net' / 'trainable').exists()


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'net').symlink_to(tmp_path / 'there')
    save_fused(model(1), tmp_path / 'net', check=False)
    save_fused(model(2), tmp_path / 'net', check=False, overwrite=True)
    assert (tmp_path / 'net').is_symlink()
    assert (tmp_path / 'there' / 'config.json').is_file()


def test_the_working_directory_stays_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label in ('a', 'b'):
        save_fused(model(1), '.', label_names=[label, 'x', 'y'], check=False, overwrite=True)
        assert os.path.samefile(tmp_path, '.')
    assert json.loads((tmp_path / 'config.json').read_text())['label_names'][0] == 'b'


def test_the_list_has_every_file_and_takes_later_ones(tmp_path):
    folder = save_fused(model(1), tmp_path / 'net', keep_trainable=True, metrics={'top1': 50.0}, check=False)
    assert set(manifest_of(folder)) == {
        'metrics.json', 'model.safetensors', 'modeling_timm_asr.py', 'trainable/config.json',
        'trainable/model.safetensors'}
    (folder / 'curve.png').write_bytes(b'plot')
    (folder / 'link.png').symlink_to('/etc/passwd')
    list_in_manifest(folder, ['curve.png', 'link.png', 'nothing.csv'])
    assert manifest_of(folder)['curve.png'] == file_sha256(folder / 'curve.png')
    assert not {'link.png', 'nothing.csv'} & set(manifest_of(folder))
    assert read_config(folder)['timm_asr']['form'] == 'folded'
    (folder / 'attention.png').write_bytes(b'of another network')
    again = {path.name for path in save_fused(folder, tmp_path / 'again', check=False).iterdir()}
    assert 'curve.png' in again
    assert 'attention.png' not in again


def test_a_link_beside_a_checkpoint_is_not_followed(tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    checkpoint = our_checkpoint(run / 'model_best.pth.tar', digits_model())
    (tmp_path / 'key').write_bytes(b'\x89PNG\r\n\x1a\nsecret')
    (run / 'attention.png').symlink_to(tmp_path / 'key')
    folder = save_fused(checkpoint, tmp_path / 'net', check=False)
    assert 'attention.png' not in {path.name for path in folder.iterdir()}


def test_a_broken_configuration_is_no_reason_to_replace(tmp_path):
    save_fused(model(1), tmp_path, check=False)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(BadInput, match='has a model.safetensors already'):
        save_fused(model(1), tmp_path, check=False)
    save_fused(model(1), tmp_path, label_names=['new', 'b', 'c'], check=False, overwrite=True)
    assert state(tmp_path) == ('new', True)
