"""What the user names becomes a model, or one sentence."""

import argparse
import json
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

import timm_asr
from timm_asr.checkpoints.find import expand_names, source_of
from timm_asr.checkpoints.open import load_model, open_source
from timm_asr.errors import BadInput

NAME = 'resnet20_asr_se'


def make(name: str = NAME, classes: int = 7, **kwargs: object) -> torch.nn.Module:
    return timm.create_model(name, num_classes=classes, **kwargs).eval()


def logits(model: torch.nn.Module, channels: int = 3) -> torch.Tensor:
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(x)


def save(path: Path, model: torch.nn.Module, name: str | None = NAME, **more: object) -> Path:
    content = {'state_dict': model.state_dict(), **more}
    torch.save(content if name is None else {'arch': name, **content}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / 'last.pth.tar', make())


def test_a_checkpoint_says_itself_which_model_it_holds(tmp_path: Path) -> None:
    model = make(in_chans=1, drop_rate=0.5, asr_depth=2)
    path = save(tmp_path / 'a.pth.tar', model, args={'model': NAME, 'in_chans': 1, 'model_kwargs': {'asr_depth': 2}})
    loaded = load_model(str(path))
    assert loaded.num_classes == 7
    assert torch.equal(logits(loaded, 1), logits(model, 1))
    assert timm_asr.has_asr(loaded)


def test_a_checkpoint_of_timms_own_script_loads(tmp_path: Path) -> None:
    model = make('resnet20')
    args = argparse.Namespace(model='resnet20', num_classes=7, input_size=None, gp=None)
    loaded = load_model('', save(tmp_path / 'timm.pth.tar', model, 'resnet20', args=args))
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(('prefix', 'more'), [
    ('module.', {}), ('module._orig_mod.', {}), ('model.', {'criterion.weight': torch.ones(7)}),
    ('model._orig_mod.', {}), ('net.', {}), ('model.module.', {})])
def test_the_prefix_of_a_wrapper_is_removed(tmp_path: Path, prefix: str, more: dict) -> None:
    """DDP's, torch.compile's and those of a Lightning ``.ckpt``, which has a loss and its own entries beside."""
    model = make('resnet20')
    weights = {**{f'{prefix}{key}': value for key, value in model.state_dict().items()}, **more}
    torch.save({'pytorch-lightning_version': '2.5', 'state_dict': weights, 'hyper_parameters': {'lr': 0.1}, 'epoch': 3,
                'global_step': 10, 'callbacks': {}, 'loops': {}}, tmp_path / 'a.ckpt')
    assert torch.equal(logits(load_model('resnet20', tmp_path / 'a.ckpt')), logits(model))


def test_a_run_whose_model_was_a_folder(tmp_path: Path) -> None:
    folder = timm_asr.save_fused(make('resnet20'), tmp_path / 'private' / 'net')
    for asr in (None, 'se'):
        model = timm_asr.create_model(f'local-dir:{folder}', asr=asr)
        path = save(tmp_path / f'{asr}.pth.tar', model, f'local-dir:{folder}',
                    args={'model': f'local-dir:{folder}', 'asr': asr})
        source = open_source(path)
        assert torch.equal(logits(source.model), logits(model))
        assert source.facts['model'] == 'resnet20'
        assert 'private' not in json.dumps(source.facts)
        written = timm_asr.save_fused(path, tmp_path / f'out-{asr}')
        assert json.loads((written / 'config.json').read_text())['architecture'] == 'resnet20'
    (folder / 'config.json').unlink()
    with pytest.raises(BadInput, match='there is no folder of weights at .*net; name the architecture'):
        open_source(path)


def test_averaged_weights_are_taken_only_when_asked_for(tmp_path: Path) -> None:
    raw, ema = make(), make()
    path = save(tmp_path / 'a.pth.tar', raw, state_dict_ema=ema.state_dict())
    assert torch.equal(logits(load_model(str(path))), logits(raw))
    assert torch.equal(logits(load_model(str(path), use_ema=True)), logits(ema))
    with pytest.raises(BadInput, match='has no averaged weights; leave out --use-ema'):
        load_model(str(save(tmp_path / 'b.pth.tar', raw)), use_ema=True)


def test_a_bare_state_dict_needs_a_name(tmp_path: Path) -> None:
    model = make()
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'bare.safetensors')
    for path in (tmp_path / 'bare.pth', tmp_path / 'bare.safetensors'):
        with pytest.raises(BadInput, match='does not say which model it is'):
            load_model(str(path))
        assert torch.equal(logits(load_model(NAME, path)), logits(model))


def test_a_fused_folder_loads_under_any_of_its_names(tmp_path: Path) -> None:
    model = make()
    want = logits(model)
    folder = tmp_path / 'fused'
    timm_asr.save_fused(model, folder)
    assert source_of(str(folder)) == 'folder'
    for name, path in ((str(folder), ''), (f'local-dir:{folder}', ''), (NAME, folder), ('', folder),
                       (str(folder / 'model.safetensors'), '')):
        loaded = load_model(name, path)
        assert not timm_asr.has_asr(loaded)
        torch.testing.assert_close(logits(loaded), want, rtol=1e-5, atol=1e-5)


def test_a_registry_name_with_its_options() -> None:
    model = load_model(NAME, num_classes=3, in_chans=1, model_kwargs={'asr_depth': 2}, drop_rate=None)
    assert logits(model, 1).shape == (2, 3)
    fixed_size = load_model('vit_tiny_patch16_224', img_size=32, num_classes=2)
    assert logits(fixed_size).shape == (2, 2)


def hub_cache(folder: Path, repo: str, source: Path) -> None:
    """Files as huggingface_hub keeps them after a download."""
    where = folder / f'models--{repo.replace("/", "--")}'
    (where / 'refs').mkdir(parents=True)
    (where / 'refs' / 'main').write_text('0' * 40)
    snapshot = where / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    for path in source.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())


def test_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    model = make()
    timm_asr.save_fused(model, tmp_path / 'fused')
    hub_cache(tmp_path / 'cache', 'me/net', tmp_path / 'fused')
    loaded = load_model('hf-hub:me/net', pretrained=True, cache_dir=str(tmp_path / 'cache'))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match=r'^cannot load hf-hub:me/other from the Hugging Face Hub: .+') as error:
        load_model('hf-hub:me/other', pretrained=True, cache_dir=str(tmp_path / 'cache'))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('name', 'said'), [
    ('resnet20_asr_see', 'resnet20_asr_se'),
    ('resnet20_asr_se.nope', "unknown pretrained tag 'nope' of resnet20_asr_se"), ('resnet18.a1_in1', 'a1_in1k'),
    ('', "unknown model ''"), ('some/repo', 'hf-hub:some/repo'), ('gone.pth.tar', 'no checkpoint at gone.pth.tar')])
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        load_model(name)
    assert said in str(error.value)
    assert '\n' not in str(error.value)


class Runs:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / 'evil.pth'
    content = {'state_dict': Runs(tmp_path / 'ran')}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInput, match='is refused: it is a pickle that would run code'):
        load_model(NAME, path)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(('suffix', 'keep'), [('.pth.tar', 0.5), ('.pth.tar', 0.99), ('.safetensors', 0.5)])
def test_a_truncated_file(tmp_path: Path, checkpoint: Path, suffix: str, keep: float) -> None:
    whole = checkpoint
    if suffix == '.safetensors':
        whole = tmp_path / 'whole.safetensors'
        safetensors.torch.save_file(make().state_dict(), whole)
    data = whole.read_bytes()
    path = tmp_path / f'cut{suffix}'
    path.write_bytes(data[:int(len(data) * keep)])
    with pytest.raises(BadInput, match='is truncated') as error:
        load_model(NAME, path)
    assert str(path) in str(error.value)


def test_foreign_files(tmp_path: Path) -> None:
    foreign = {'text.pth': b'model: resnet20\n', 'noise.safetensors': bytes(100), 'empty.pth': b''}
    for name, data in foreign.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / 'zip.pth', 'w') as file:
        file.writestr('readme.txt', 'not a checkpoint')
    torch.save([1, 2], tmp_path / 'list.pth')
    torch.save({'epoch': 3}, tmp_path / 'number.pth')
    for name, said in {'text.pth': 'is not a checkpoint', 'noise.safetensors': 'not a safetensors file',
                       'empty.pth': 'is empty', 'zip.pth': 'is not a checkpoint', 'list.pth': 'holds a list',
                       'number.pth': 'holds no weights', 'nothing.pth': 'no checkpoint at'}.items():
        with pytest.raises(BadInput, match=said) as error:
            load_model(NAME, tmp_path / name)
        assert name in str(error.value)
        assert '\n' not in str(error.value)


def test_a_wrong_class_count(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(BadInput, match='trained for 7 classes, but 10 were asked for'):
        load_model(NAME, checkpoint, num_classes=10)
    timm_asr.save_fused(make(), tmp_path / 'fused')
    with pytest.raises(BadInput, match='has 7 classes, but 10 were asked for'):
        load_model(str(tmp_path / 'fused'), num_classes=10)
    with pytest.raises(BadInput, match='have 1000 classes, but 10 were asked for'):
        load_model('resnet18.a1_in1k', pretrained=True, num_classes=10)


def test_no_pretrained_weights() -> None:
    with pytest.raises(BadInput, match='resnet32_asr_se has no pretrained weights; name the weights with --checkpoint'):
        load_model('resnet32_asr_se', pretrained=True)


def test_fused_weights_in_a_trainable_model_and_the_other_way_round(tmp_path: Path, checkpoint: Path) -> None:
    fused = save(tmp_path / 'fused.pth', timm_asr.fold_asr(make()), None)
    with pytest.raises(BadInput, match='is folded'):
        load_model(NAME, fused)
    assert not timm_asr.has_asr(load_model('resnet20', fused))
    with pytest.raises(BadInput, match='is a trainable ASR checkpoint'):
        load_model('resnet20', checkpoint)


def test_weights_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r'does not fit resnet32_asr_se: \d+ keys missing') as error:
        load_model('resnet32_asr_se', checkpoint)
    assert '\n' not in str(error.value)
    with pytest.raises(BadInput, match='does not fit'):
        load_model(NAME, checkpoint, in_chans=1)


def test_keywords_that_a_model_does_not_take() -> None:
    with pytest.raises(BadInput, match="cannot create resnet20_asr_se: .*unexpected keyword argument 'asr_deep'"):
        load_model(NAME, model_kwargs={'asr_deep': 2})


def test_damaged_folders(tmp_path: Path) -> None:
    def folder(name: str, config: str | None, weights: bytes | None) -> str:
        path = tmp_path / name
        path.mkdir()
        if config is not None:
            (path / 'config.json').write_text(config)
        if weights is not None:
            (path / 'model.safetensors').write_bytes(weights)
        return str(path)

    good = json.dumps({'architecture': 'resnet20', 'num_classes': 7, 'pretrained_cfg': {}})
    for name, said in {folder('no_config', None, b''): 'without config.json',
                       folder('bad_json', '{', b''): 'is not valid JSON',
                       folder('no_name', '{}', b''): 'names no architecture',
                       folder('unknown', '{"architecture": "resnet21"}', b''): "unknown model 'resnet21'",
                       folder('no_weights', good, None): 'no weights',
                       folder('truncated', good, bytes(20)): 'cannot create'}.items():
        with pytest.raises(BadInput, match=said) as error:
            load_model(name)
        assert '\n' not in str(error.value)


def test_lists_of_names(tmp_path: Path, checkpoint: Path) -> None:
    assert expand_names(NAME) is None
    assert expand_names(str(checkpoint)) is None
    assert expand_names('resnet20_asr_*') == sorted(timm.list_models('resnet20_asr_*'))
    assert expand_names('resnet18', pretrained=True) is None
    found = expand_names('resnet18*', pretrained=True)
    assert found is not None
    assert 'resnet18.a1_in1k' in found
    assert all(name.startswith('resnet18') and '.' in name for name in found)
    with pytest.raises(BadInput, match=r"no model matches 'nope\*'"):
        expand_names('nope*')
    listing = tmp_path / 'models.txt'
    listing.write_text('resnet20\n\n# a remark\nresnet20_se\n')
    assert expand_names(str(listing)) == ['resnet20', 'resnet20_se']
    listing.write_text('resnet20\nresnet2o_se\n')
    with pytest.raises(BadInput, match="unknown model 'resnet2o_se'; the nearest names are .*resnet20_se"):
        expand_names(str(listing))
    listing.write_text('\n')
    with pytest.raises(BadInput, match='is empty'):
        expand_names(str(listing))


def test_an_older_folder_still_loads(tmp_path: Path) -> None:
    """From before the list of files: the classes are said twice, the form is called fused, figures have old keys."""
    model = make()
    folder = timm_asr.save_fused(model, tmp_path / 'a', keep_trainable=True, metrics={'top1': 1.0, 'top1_folded': 1.0})
    for part in (folder, folder / 'trainable'):
        config = json.loads((part / 'config.json').read_text())
        config['model_args']['num_classes'] = 7
        section = config['timm_asr']
        section |= {'format': 1, 'created': '2026-01-01T00:00:00+00:00', 'form': section['form'].replace('old', 'us')}
        for key in ('files', 'base_model'):
            section.pop(key, None)
        for key in ('auto_map', 'image_processor_type'):
            config.pop(key, None)
        (part / 'config.json').write_text(json.dumps(config))
    (folder / 'modeling_timm_asr.py').unlink()
    (folder / 'metrics.json').write_text('{"top1": 1.0, "top1_fused": 1.0}')
    assert torch.equal(logits(load_model(str(folder))), logits(timm_asr.fold_asr(timm_asr.load_trainable(folder))))
    assert open_source(folder).metrics == {'top1': 1.0, 'top1_folded': 1.0}
    again = json.loads((timm_asr.save_fused(folder, tmp_path / 'b') / 'config.json').read_text())
    assert 'num_classes' not in again['model_args']
    assert again['timm_asr']['form'] == 'folded'


def test_what_training_started_from(tmp_path: Path) -> None:
    model = make('resnet18')
    for args, wanted in (({'pretrained': True}, 'timm/resnet18.a1_in1k'), ({}, None),
                         ({'model': 'hf-hub:me/net@v1'}, 'me/net')):
        path = save(tmp_path / 'a.pth.tar', model, 'resnet18', args={'model': 'resnet18', **args})
        assert open_source(path).facts.get('base_model') == wanted
