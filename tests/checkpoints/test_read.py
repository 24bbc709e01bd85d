"""Files that somebody else wrote: never run, never larger than they look, every field checked where they are opened."""

import json
import pickle
import zipfile

import pytest
import torch

from timm_asr.checkpoints.read import read_checkpoint, read_config, read_json, read_yaml
from timm_asr.errors import BadInput

TEXT, COUNT, LIST = [1, [], {}], ['x', -1, 1.5, True, 10**30], [[], ['a'], 'x', 0.5]
SIZE, MAPPING = [[3, 32], [3, 32, 0], 'x', [1.5, 1, 1]], ['x', []]
CHECKPOINT = {
    'arch': TEXT, 'epoch': COUNT, 'metric': ['x', [], True], 'label_names': [3, [1]], 'made_by': MAPPING,
    'args': MAPPING, 'args.model': TEXT, 'args.num_classes': COUNT, 'args.in_chans': COUNT,
    'args.input_size': SIZE, 'args.model_kwargs': MAPPING, 'args.asr': TEXT, 'args.mean': LIST, 'args.std': LIST,
    'args.img_size': ['x', [0], -1], 'args.crop_pct': ['x', []], 'args.data_dir': TEXT, 'args.config': TEXT,
    'args.eval_metric': TEXT, 'optimizer': MAPPING, 'optimizer.param_groups': ['x', [1], {}], 'ema_generator': [1, []],
    'saver': MAPPING, 'saver.best_epoch': COUNT, 'saver.ranked': ['x', [1], [[0]], [['x', 1.0]], [[0, []]]],
    'plateau': MAPPING, 'plateau.best': ['x', []], 'plateau.num_bad_epochs': COUNT, 'plateau.restore_lr': [1.0, ['x']]}
CONFIGURATION = {
    'num_classes': COUNT, 'model_args': MAPPING, 'label_names': [3, [1]], 'pretrained_cfg': MAPPING,
    'timm_asr': MAPPING, 'pretrained_cfg.input_size': SIZE, 'pretrained_cfg.mean': LIST,
    'timm_asr.form': TEXT, 'timm_asr.needs': ['x', [1]], 'timm_asr.files': MAPPING, 'timm_asr.asr': MAPPING,
    'pretrained_cfg.label_names': [3, [1]], 'timm_asr.weights_sha256': TEXT, 'timm_asr.epoch': COUNT,
    'timm_asr.metrics': MAPPING}


@pytest.mark.parametrize(('of_checkpoint', 'field', 'values'), [
    *((True, *item) for item in CHECKPOINT.items()), *((False, *item) for item in CONFIGURATION.items())])
def test_a_malformed_field_is_one_sentence(of_checkpoint, field, values, tmp_path):
    part, _, key = field.rpartition('.')
    for value in values:
        inside = {part: {key: value}} if part else {key: value}
        if of_checkpoint:
            torch.save({'state_dict': {}, **inside}, tmp_path / 'a.pth')
        else:
            (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'resnet20', **inside}))
        with pytest.raises(BadInput, match=rf"(pth|json) is malformed: '{key}' is [^\n]+, where [^\n]+ belongs$"):
            read_checkpoint(tmp_path / 'a.pth') if of_checkpoint else read_config(tmp_path)


def test_an_alias_bomb_is_refused_by_size(tmp_path):
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 9)]
    path = tmp_path / 'args.yaml'
    path.write_text('\n'.join(lines))
    with pytest.raises(BadInput, match='its aliases expand it to more than 200,000 values'):
        read_yaml(path)
    path.write_text('a: &a [1]\nb: *a\n')
    assert read_yaml(path) == {'a': [1], 'b': [1]}
    for text, said in (('[1, 2]', 'holds a list'), ('a: [', 'is not valid YAML'),
                       ('[' * 5000, 'is not valid YAML'), ('!!python/object:os.system x', 'is not valid YAML')):
        path.write_text(text)
        with pytest.raises(BadInput, match=said):
            read_yaml(path)


def test_a_small_file_that_expands_is_refused_by_size(tmp_path):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', pickle.dumps({}))
        archive.writestr('archive/data/0', bytes(64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BadInput, match=r'is refused: it has [\d,]+ bytes and expands to 67,\d+,\d+'):
        read_checkpoint(path)


def test_large_or_foreign_text(tmp_path):
    path = tmp_path / 'config.json'
    for data, said in ((b'{"a": 1' + b' ' * (17 << 20) + b'}', 'bytes, where a few thousand belong'),
                       (b'[1]', 'holds a list'), (b'\xff\xfe', 'is not a text file'), (b'[' * 100_000, 'valid JSON')):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=said):
            read_json(path)
