"""Files that somebody else wrote: never run, never larger than they look, every field checked where they are opened."""

import argparse
import json
import pickle
import zipfile

import pytest
import timm
import torch

import timm_asr
from timm_asr.checkpoints.open import open_source
from timm_asr.checkpoints.read import read_checkpoint, read_config, read_json, read_yaml
from timm_asr.checkpoints.trainable import create_trainable
from timm_asr.errors import BadInput

WRONG = ['text', -1, 1.5, [], {}, ['a'], {'a': 1}, [1, 2], 10**30, float('nan'), True, [None], {'1': [[]]}]


def small():
    return timm.create_model('resnet20_asr_se', num_classes=3, layers=(1, 1, 1))


@pytest.fixture(scope='module')
def content():
    args = {'model': 'resnet20_asr_se', 'num_classes': 3, 'in_chans': 3, 'img_size': 32, 'input_size': [3, 32, 32],
            'gp': 'avg', 'model_kwargs': {'layers': [1, 1, 1]}, 'asr': None, 'mean': [0.5], 'std': [0.2], 'lr': 0.1,
            'crop_pct': 1.0, 'interpolation': 'bilinear', 'dataset': 'digits', 'data_dir': '/x', 'config': 'digits',
            'seed': 1, 'eval_metric': 'top1', 'epochs': 2}
    return {'arch': 'resnet20_asr_se', 'epoch': 3, 'metric': 90.0, 'label_names': list('abc'), 'args': args,
            'made_by': {'git_commit': 'c0ffee'}, 'saver': {}, 'state_dict': small().state_dict()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return timm_asr.save_fused(small(), tmp_path_factory.mktemp('a') / 'net', keep_trainable=True)


def one_sentence(call, *args):
    """Whether a call was refused; any other error than BadInput fails the test."""
    try:
        call(*args)
    except BadInput as error:
        said = str(error)
    else:
        return False
    assert '\n' not in said
    return True


def test_a_malformed_field_of_a_checkpoint_is_one_sentence(content, tmp_path):
    path, refused = tmp_path / 'a.pth', 0
    places = [(None, key) for key in content] + [('args', key) for key in content['args']]
    for part, key in places:
        for value in WRONG:
            changed = {**content, 'args': dict(content['args'])}
            (changed if part is None else changed['args'])[key] = value
            torch.save(changed, path)
            refused += one_sentence(open_source, path)
    assert refused > len(places) * 5
    torch.save(content, path)
    open_source(path)


def test_a_malformed_field_of_a_configuration_is_one_sentence(folder, tmp_path):
    path = tmp_path / 'net'
    path.mkdir()
    for name in ('model.safetensors', 'config.json'):
        (path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((path / 'config.json').read_text())
    places = [(part, key) for part in (None, 'pretrained_cfg', 'timm_asr', 'model_args')
              for key in (config if part is None else config[part])]
    refused = 0
    for part, key in places:
        for value in [*WRONG, None]:
            changed = json.loads(json.dumps(config))
            (changed if part is None else changed[part])[key] = value
            (path / 'config.json').write_text(json.dumps(changed))
            refused += one_sentence(open_source, path)
            one_sentence(create_trainable, path)
    assert refused > len(places)


def test_a_namespace_is_a_dict_of_options(tmp_path):
    torch.save({'args': argparse.Namespace(model='resnet20'), 'state_dict': {'a': torch.ones(1)}}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['args'] == {'model': 'resnet20'}


def test_an_alias_bomb_is_refused_by_size(tmp_path):
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 9)]
    path = tmp_path / 'args.yaml'
    path.write_text('\n'.join(lines))
    with pytest.raises(BadInput, match='its aliases expand it to more than 200,000 values'):
        read_yaml(path)
    path.write_text('a: &a [1]\nb: *a\n')
    assert read_yaml(path) == {'a': [1], 'b': [1]}
    for text, said in (('[1, 2]', 'is not a file of options'), ('a: [', 'is not valid YAML'),
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
    path.write_text('{"architecture": "resnet20", "num_classes": "ten"}')
    with pytest.raises(BadInput, match="config.json is malformed: 'num_classes' is 'ten', where a whole number"):
        read_config(tmp_path)


def test_the_trainable_form_takes_architecture_and_plain_arguments_alone(folder, tmp_path):
    """Not an address, a file, a device or a class: a configuration may come from anybody."""
    there = tmp_path / 'net'
    there.mkdir()
    for name in ('model.safetensors', 'config.json'):
        (there / name).write_bytes((folder / 'trainable' / name).read_bytes())
    config = json.loads((there / 'config.json').read_text())
    config['pretrained_cfg'] |= {'url': 'http://127.0.0.1:1/evil', 'file': '/etc/passwd', 'hf_hub_id': 'evil/evil',
                                 'custom_load': True}
    config['model_args'] |= {'device': 'meta', 'checkpoint_path': '/etc/passwd', 'pretrained': True,
                             'pretrained_cfg_overlay': {'url': 'http://127.0.0.1:1/evil'}}
    (there / 'config.json').write_text(json.dumps(config))
    model = create_trainable(there)
    assert not any(p.is_meta for p in model.parameters())
    assert not {'file', 'hf_hub_id', 'custom_load'} & {k for k in config['pretrained_cfg'] if
                                                       model.pretrained_cfg.get(k) == config['pretrained_cfg'][k]}
    assert model.pretrained_cfg.get('url') != config['pretrained_cfg']['url']
