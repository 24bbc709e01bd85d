"""Loading what was published: by stock timm, as the trainable form, and what a broken file leads to."""

import json
import shutil

import pytest
import torch
from helpers import randomize
from hub_helpers import change_config, contents, make_folder
from hub_server import OTHER, WRITE
from safetensors.torch import load_file

import timm_asr
from timm_asr.errors import BadInput

REPO = 'alice/small'
COMPARE = '''
import sys, timm, torch
def error(model, path):
    x, logits = torch.load(path, weights_only=True)
    with torch.no_grad():
        return ((model.eval()(x) - logits).abs().max() / logits.abs().max()).item()
'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('small') / 'run')


@pytest.fixture
def cache(tmp_path):
    return tmp_path / 'cache'


def serve(hub, folder, repo_id=REPO, **kwargs):
    return hub.create(repo_id, {**contents(folder), 'README.md': b'---\ntags:\n- timm_asr\n---\n'}, **kwargs)


def load(client, expression, **env):
    """The value of an expression over timm_asr, or the sentence that it was refused with."""
    return client.run(f'''
import time, timm_asr
time.sleep = lambda seconds: None  # between the client's own retries
from timm_asr.errors import BadInput, Stopped
try:
    result = {expression}
except (BadInput, Stopped) as error:
    result = f'{{type(error).__name__}}: {{error}}'
''', **env)


def test_a_network_of_the_hub_as_a_source_and_with_asr(hub, hub_client, tmp_path):
    """It computes what was published, until it is trained."""
    folder = make_folder(tmp_path / 'fused', 'resnet18_asr_se', num_classes=4)
    serve(hub, folder)
    ran = hub_client.run(COMPARE + f'''
import timm_asr
from timm_asr.checkpoints.open import open_source
check = {str(folder.parent / 'fused.check.pt')!r}
model = timm_asr.create_model('hf-hub:{REPO}', pretrained=True, asr='eca')
result = [timm_asr.has_asr(model), error(model, check), error(open_source('hf-hub:{REPO}').model, check)]
try:
    open_source('hf-hub:alice/none')
except timm_asr.errors.BadInput as refused:
    result.append(str(refused))
''')
    assert ran.result[0], ran.err
    assert max(ran.result[1:3]) < 1e-5
    assert ran.result[3].startswith('cannot load hf-hub:alice/none from the Hugging Face Hub: ')


def test_stock_timm_loads_what_was_fused(hub, stock_client, tmp_path):
    folder = make_folder(tmp_path / 'fused', 'resnet18_asr_se', num_classes=4)
    serve(hub, folder)
    ran = stock_client.run(COMPARE + f'''
check = {str(tmp_path / "fused.check.pt")!r}
cache = {{'cache_dir': {str(tmp_path / "cache")!r}}}
result = [error(timm.create_model('hf-hub:{REPO}', pretrained=True, **cache), check),
          error(timm.create_model({f"local-dir:{folder}"!r}, pretrained=True), check),
          [n for n in sys.modules if n.startswith('timm_asr')],
          timm.create_model('hf-hub:{REPO}', pretrained=True, num_classes=2, **cache).num_classes]
''')
    assert ran.rc == 0, ran.err
    near, near_too, ours, classes = ran.result
    assert max(near, near_too) < 1e-5
    assert ours == []
    assert classes == 2


def test_the_trainable_form(hub, hub_client, folder, cache):
    serve(hub, folder)
    hub.repos[REPO].refs['v1'] = hub.repos[REPO].refs['main']
    state = load_file(folder / 'trainable' / 'model.safetensors')
    torch.save(state, folder.parent / 'state.pt')
    ran = hub_client.run(COMPARE + f'''
import timm_asr
names = ['{REPO}', 'hf-hub:{REPO}', '{REPO}@v1', {str(folder)!r}, {str(folder / 'trainable')!r}]
models = [timm_asr.load_trainable(name, cache_dir={str(cache)!r}) for name in names]
models.append(timm_asr.load_trainable('{REPO}', revision='v1', cache_dir={str(cache)!r}))
state = torch.load({str(folder.parent / 'state.pt')!r}, weights_only=True)
seven = timm_asr.load_trainable('{REPO}', num_classes=7, cache_dir={str(cache)!r})
result = [
    [all(torch.equal(value, state[key]) for key, value in model.state_dict().items()) for model in models],
    [len(model.state_dict()) == len(state) for model in models],
    [timm_asr.has_asr(model) and model.training for model in models],
    max(error(model, {str(folder.parent / 'run.check.pt')!r}) for model in models),
    list(seven(torch.randn(2, 3, 32, 32)).shape), torch.equal(seven.conv1.weight, models[0].conv1.weight)]
''')
    assert ran.rc == 0, ran.err
    equal, complete, trainable, error, shape, same = ran.result
    assert equal == complete == trainable == [True] * 6
    assert error < 1e-5
    assert shape == [2, 7]
    assert same


def test_a_network_from_which_nothing_was_folded_is_its_own_trainable_form(tmp_path):
    folder = make_folder(tmp_path / 'se', 'resnet20_se', trainable=False)
    model = timm_asr.load_trainable(folder)
    assert model.pretrained_cfg['architecture'] == 'resnet20_se'
    state = load_file(folder / 'model.safetensors')
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    timm_asr.load_trainable(timm_asr.save_fused(randomize(model), tmp_path / 'again', check=False))


def test_places_without_a_trainable_form(tmp_path, folder):
    fused = shutil.copytree(folder, tmp_path / 'fused')
    shutil.rmtree(fused / 'trainable')
    with pytest.raises(BadInput, match='fused is the folded network alone, without its trainable form'):
        timm_asr.load_trainable(fused)
    change_config(fused, timm_asr=None)
    with pytest.raises(BadInput, match='is a model of which timm_asr knows nothing; timm.create_model loads it'):
        timm_asr.load_trainable(fused)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BadInput, match='empty is not a folder of weights: it has no config.json'):
        timm_asr.load_trainable(tmp_path / 'empty')
    with pytest.raises(BadInput, match=r'there is no folder \./nowhere'):
        timm_asr.load_trainable('./nowhere')
    with pytest.raises(BadInput, match="'nowhere' does not name a repository: it takes OWNER/NAME"):
        timm_asr.load_trainable('nowhere')
    with pytest.raises(BadInput, match='is a folder, which has no revision v1'):
        timm_asr.load_trainable(folder, revision='v1')


def test_what_the_hub_does_not_have(hub, hub_client, folder, cache):
    serve(hub, folder, 'alice/hidden', private=True)
    repo = serve(hub, folder)
    del repo.tree()['trainable/model.safetensors']
    for expression, sentence, env in (
            ("timm_asr.load_trainable('alice/none')", 'BadInput: fetching config.json of alice/none: there is no', {}),
            ("timm_asr.load_trainable('alice/hidden')", 'or it is private and the token may not see it', {}),
            ("timm_asr.load_trainable('alice/hidden')", 'or it is private', {'HF_TOKEN': OTHER}),
            (f"timm_asr.load_trainable('{REPO}', revision='v9')", f'{REPO} has no such revision', {}),
            (f"timm_asr.load_trainable('{REPO}')", f'{REPO} has no such file', {})):
        found = load(hub_client, expression.replace(')', f', cache_dir={str(cache)!r})'), **env)
        assert sentence in found.result, found
    found = load(hub_client, f"timm_asr.has_asr(timm_asr.load_trainable('alice/hidden', cache_dir={str(cache)!r}))",
                 HF_TOKEN=WRITE)
    assert found.result is True, found


CALL = "timm_asr.has_asr(timm_asr.load_trainable('{repo}', cache_dir='{cache}'{more}))"
FILE = 'trainable/model.safetensors'


def test_an_altered_download_is_refused_and_can_be_fetched_again(hub, hub_client, folder, cache):
    serve(hub, folder)
    hub.fail('GET', '/cdn/', how='alter')
    call = CALL.format(repo=REPO, cache=cache, more='{}')
    for _ in range(2):  # the second time from the cache
        found = load(hub_client, call.format(''))
        assert found.result.startswith('BadInput: '), found
        assert f'{FILE} was altered: its SHA-256 is' in found.result
        assert 'fetch it again with force_download=True' in found.result
        hub.faults.clear()
    assert load(hub_client, call.format(', force_download=True')).result is True
    assert load(hub_client, call.format('')).result is True


def test_weights_come_from_the_same_repository_alone(hub, hub_client, folder, tmp_path, cache):
    """A configuration from somebody else names no address, file or device that is used."""
    evil = shutil.copytree(folder, tmp_path / 'evil')
    config = json.loads((evil / 'trainable' / 'config.json').read_text())
    evil_cfg = {'url': f'{hub.url}/evil', 'hf_hub_id': 'evil/evil', 'custom_load': True, 'file': '/etc/passwd'}
    config['pretrained_cfg'] |= evil_cfg
    config['model_args'] |= {'device': 'meta', 'pretrained': True, 'checkpoint_path': '/etc/passwd',
                             'pretrained_cfg_overlay': {'url': f'{hub.url}/evil'}}
    (evil / 'trainable' / 'config.json').write_text(json.dumps(config))
    serve(hub, evil)
    hub.log.clear()
    assert load(hub_client, CALL.format(repo=REPO, cache=cache, more='')).result is True
    assert not [path for _, path in hub.log if 'evil' in path]
    model = timm_asr.load_trainable(evil)
    assert not any(p.is_meta for p in model.parameters())
    assert not [key for key in evil_cfg if model.pretrained_cfg.get(key) == evil_cfg[key]]


def test_a_folder_is_checked_as_well(tmp_path, folder):
    copied = shutil.copytree(folder, tmp_path / 'copied')
    weights = copied / 'trainable' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'!')
    with pytest.raises(BadInput, match='was altered: .*; write or copy the folder again'):
        timm_asr.load_trainable(copied)


FIELDS = 'p.repo_id, p.architecture, p.model, list(p.needs), p.metrics, p.private'
LIST = f'[[{FIELDS}] for p in timm_asr.list_published({{}})]'


def test_what_somebody_published(hub, hub_client, folder, tmp_path, cache):
    measured = make_folder(tmp_path / 'measured', 'resnet18_asr_se', trainable=False, extras=True)
    serve(hub, measured, 'alice/measured')
    serve(hub, folder, 'alice/another', private=True)
    serve(hub, folder, 'bob/his')
    hub.create('alice/foreign', {'config.json': b'{"architecture": "resnet18"}'})
    hub.create('alice/tagged', {'README.md': b'---\ntags:\n- timm_asr\n---\n', 'config.json': b'{}'})
    public = ['alice/measured', 'resnet18', 'resnet18_asr_se', []]
    found = load(hub_client, LIST.format(f"'alice', cache_dir={str(cache)!r}")).result
    assert [row[:4] for row in found] == [public]
    assert found[0][4]['before'] == found[0][4]['after'] == {'top1': 91.25, 'top5': 99.5}
    assert found[0][5] is False
    found = load(hub_client, LIST.format(f"'alice', cache_dir={str(cache)!r}"), HF_TOKEN=WRITE).result
    assert [row[:4] for row in found] == [['alice/another', 'resnet20', 'resnet20_asr_se', ['timm_asr']], public]
    assert [row[5] for row in found] == [True, False]
    assert load(hub_client, LIST.format("'nobody'")).result == []
    hub.fail('GET', '/api/models$', how='cut')
    assert 'listing the models of alice' in load(hub_client, LIST.format("'alice'")).result
