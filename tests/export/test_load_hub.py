"""Loading what was published: by timm, as the trainable form, and what a broken file leads to."""

import json
import shutil

import pytest
import timm
import torch
from helpers import randomize, relative_error
from hub import OTHER, WRITE
from hub_helpers import change_config, contents, make_folder
from safetensors.torch import load_file

import timm_asr
from timm_asr.checkpoints.open import open_source
from timm_asr.errors import BadInput, Stopped

REPO = 'alice/small'
WEIGHTS = 'trainable/model.safetensors'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('small') / 'run')


def serve(hub, folder, repo_id=REPO, **kwargs):
    return hub.create(repo_id, {**contents(folder), 'README.md': b'---\ntags:\n- timm_asr\n---\n'}, **kwargs)


@torch.no_grad()
def check(model, folder):
    """It computes what the network did that the folder was made of."""
    x, logits = torch.load(folder.parent / f'{folder.name}.check.pt', weights_only=True)
    assert relative_error(logits, model.eval()(x)) < 1e-5


def test_a_network_of_the_hub_by_timm_as_a_source_and_with_asr(hub, tmp_path):
    folder = make_folder(tmp_path / 'fused', 'resnet18_asr_se', num_classes=4)
    serve(hub, folder)
    plain = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert type(plain) is timm.models.ResNet
    check(plain, folder)
    assert timm.create_model(f'hf-hub:{REPO}', pretrained=True, num_classes=2).num_classes == 2
    model = timm_asr.create_model(f'hf-hub:{REPO}', pretrained=True, asr='eca')
    assert timm_asr.has_asr(model)
    check(model, folder)  # until it is trained
    check(open_source(f'hf-hub:{REPO}').model, folder)
    with pytest.raises(BadInput, match='have 4 classes, but 7 were asked for; leave --num-classes out'):
        open_source(f'hf-hub:{REPO}', num_classes=7)
    assert open_source(f'hf-hub:{REPO}', pretrained=False, num_classes=7).model.num_classes == 7
    with pytest.raises(BadInput, match='^cannot load hf-hub:alice/none from the Hugging Face Hub: '):
        open_source('hf-hub:alice/none')


def test_the_trainable_form(hub, folder, tmp_path):
    repo = serve(hub, folder)
    repo.tags['v1'] = repo.head
    repo.commit('later', {})
    state = load_file(folder / WEIGHTS)
    for name, kwargs in ((f'{REPO}@v1', {}), (f'hf-hub:{REPO}', {'revision': 'v1', 'cache_dir': tmp_path / 'other'}),
                         (folder, {}), (str(folder / 'trainable'), {})):
        model = timm_asr.load_trainable(name, **kwargs)
        assert timm_asr.has_asr(model)
        assert model.training
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        check(model, folder)
    assert (tmp_path / 'other').is_dir()
    for classes, outputs in ((7, 7), (0, 64)):
        other = timm_asr.load_trainable(folder, num_classes=classes)
        assert other(torch.randn(2, 3, 32, 32)).shape == (2, outputs)
        assert torch.equal(other.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnet20_se', {'se_depth': 2, 'se_pool': 'max'}), ('resnet20_dia_lstm', {'dia_cells': 2, 'dia_stages': (2, 3)})])
def test_a_network_from_which_nothing_was_folded_is_its_own_trainable_form(tmp_path, name, kwargs):
    folder = make_folder(tmp_path / 'net', name, trainable=False, **kwargs)
    model = timm_asr.load_trainable(folder)
    assert model.pretrained_cfg['architecture'] == name
    state = load_file(folder / 'model.safetensors')
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    check(model, folder)
    timm_asr.load_trainable(timm_asr.save_fused(randomize(model), tmp_path / 'again', check=False))


def test_places_without_a_trainable_form(tmp_path, folder):
    fused = shutil.copytree(folder, tmp_path / 'fused')
    shutil.rmtree(fused / 'trainable')
    with pytest.raises(BadInput, match='fused is the folded network alone, without its trainable form'):
        timm_asr.load_trainable(fused)
    change_config(fused, timm_asr=None)
    (tmp_path / 'empty').mkdir()
    for name, kwargs, sentence in (
            (fused, {}, 'is a model of which timm_asr knows nothing; timm.create_model loads it'),
            (tmp_path / 'empty', {}, 'empty is not a folder of weights: it has no config.json'),
            ('./nowhere', {}, r'there is no folder \./nowhere'),
            ('nowhere', {}, "'nowhere' does not name a repository: it takes OWNER/NAME"),
            (folder, {'revision': 'v1'}, 'is a folder, which has no revision v1')):
        with pytest.raises(BadInput, match=sentence):
            timm_asr.load_trainable(name, **kwargs)


def test_what_the_hub_does_not_have(hub, folder, monkeypatch):
    serve(hub, folder, 'alice/hidden', private=True)
    del serve(hub, folder).tree[WEIGHTS]
    for name, token, sentence in (
            ('alice/none', '', 'fetching config.json of alice/none: there is no'),
            ('alice/hidden', '', 'or it is private and the token may not see it'),
            ('alice/hidden', OTHER, 'or it is private'), (f'{REPO}@v9', '', f'{REPO} has no such revision'),
            (REPO, '', f'{REPO} has no such file')):
        monkeypatch.setenv('HF_TOKEN', token)
        with pytest.raises(BadInput, match=sentence):
            timm_asr.load_trainable(name)
    assert timm_asr.has_asr(timm_asr.load_trainable('alice/hidden', token=WRITE))


def test_an_altered_download_is_refused_and_can_be_fetched_again(hub, folder, tmp_path):
    serve(hub, folder)
    timm_asr.load_trainable(REPO)
    cached, = (tmp_path / 'cache').rglob(WEIGHTS)
    cached.write_bytes(cached.read_bytes()[:-1] + b'!')
    with pytest.raises(BadInput, match=rf'{WEIGHTS} was altered: its SHA-256 is .* again with force_download=True'):
        timm_asr.load_trainable(REPO)
    for kwargs in ({'force_download': True}, {}):
        assert timm_asr.has_asr(timm_asr.load_trainable(REPO, **kwargs))
    copied = shutil.copytree(folder, tmp_path / 'copied')
    (copied / WEIGHTS).write_bytes(cached.read_bytes()[:-1] + b'!')
    with pytest.raises(BadInput, match='was altered: .*; write or copy the folder again'):
        timm_asr.load_trainable(copied)


def test_weights_come_from_the_same_repository_alone(hub, folder, tmp_path):
    """A configuration from somebody else names no address, file or device that is used."""
    evil = shutil.copytree(folder, tmp_path / 'evil')
    config = json.loads((evil / 'trainable' / 'config.json').read_text())
    evil_cfg = {'url': f'{hub.url}/evil', 'hf_hub_id': 'evil/evil', 'custom_load': True, 'file': '/etc/passwd'}
    config['pretrained_cfg'] |= evil_cfg
    config['model_args'] |= {'device': 'meta', 'pretrained': True, 'checkpoint_path': '/etc/passwd',
                             'pretrained_cfg_overlay': {'url': f'{hub.url}/evil'}}
    (evil / 'trainable' / 'config.json').write_text(json.dumps(config))
    serve(hub, evil)
    model = timm_asr.load_trainable(REPO)
    assert hub.log
    assert not [line for line in hub.log if 'evil' in line]
    assert not any(p.is_meta for p in model.parameters())
    assert not [key for key in evil_cfg if model.pretrained_cfg.get(key) == evil_cfg[key]]


def test_what_somebody_published(hub, folder):
    for name in ('alice/measured', 'bob/his'):
        serve(hub, folder, name)
    serve(hub, folder, 'alice/another', private=True)
    hub.create('alice/foreign', {'config.json': b'{"architecture": "resnet18"}'})
    assert [(one.id, one.private) for one in timm_asr.list_published('alice')] == [('alice/measured', False)]
    assert {one.id for one in timm_asr.list_published('alice', token=WRITE)} == {'alice/measured', 'alice/another'}
    assert timm_asr.list_published('nobody') == []
    hub.faults['/api/models$'] = 'cut'
    with pytest.raises(Stopped, match='listing the models of alice'):
        timm_asr.list_published('alice')
    with pytest.raises(Stopped, match=r'Bearer \.\.\.'):  # a token that no header takes, and that is not printed
        timm_asr.list_published('alice', token=f'{WRITE}\n')
