"""What the user names becomes a model, or one sentence."""

import argparse
import json
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import timm_asr
from timm_asr.checkpoints import open as opening
from timm_asr.checkpoints.find import expand_names, source_of
from timm_asr.checkpoints.open import open_source
from timm_asr.errors import BadInput

NAME = 'resnet20_asr_se'


def make(name: str = NAME, classes: int = 7, **kwargs: object) -> torch.nn.Module:
    return timm.create_model(name, num_classes=classes, **kwargs).eval()


def load_model(name: str, checkpoint: str | Path = '', pretrained: bool = False, **options: object) -> torch.nn.Module:
    if checkpoint:
        return open_source(checkpoint, name=name, **options).model
    return open_source(name, pretrained=pretrained, **options).model


def logits(model: torch.nn.Module, channels: int = 3) -> torch.Tensor:
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(x)


def save(path: Path, model: torch.nn.Module, name: str | None = NAME, **more: object) -> Path:
    content = {'state_dict': model.state_dict(), **more}
    torch.save(content if name is None else {'arch': name, **content}, path)
    return path


def refused(said: str, name: str | Path, checkpoint: str | Path = '', **options: object) -> None:
    with pytest.raises(BadInput, match=said) as error:
        load_model(str(name), checkpoint, **options)
    assert '\n' not in str(error.value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / 'last.pth.tar', make())


def test_a_checkpoint_says_itself_which_model_it_holds(tmp_path: Path) -> None:
    model = make(in_chans=1, drop_rate=0.5, asr_depth=2)
    for args, asked in (({'in_chans': 1}, {}), ({'input_size': [1, 32, 32]}, {'img_size': 48})):
        path = save(tmp_path / 'a.pth.tar', model, args={'model': NAME, 'model_kwargs': {'asr_depth': 2}, **args})
        loaded = load_model('', path, **asked)
        assert loaded.num_classes == 7
        assert torch.equal(logits(loaded, 1), logits(model, 1))
        assert timm_asr.has_asr(loaded)


@pytest.mark.parametrize(('name', 'kwargs', 'args'), [
    ('mobilenetv1_100_cifar_asr_se', {'bn_eps': 0.1}, {'bn_eps': 0.1}),
    (NAME, {'global_pool': 'max'}, {'gp': None, 'model_kwargs': {'global_pool': 'max'}})])
def test_options_that_change_the_function_and_no_weight(tmp_path: Path, name: str, kwargs: dict, args: dict) -> None:
    model = make(name, **kwargs)
    path = save(tmp_path / 'a.pth.tar', model, name, args={'model': name, **args})
    assert torch.equal(logits(load_model('', path)), logits(model))


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


def test_a_prefix_of_the_network_itself_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapped(torch.nn.Module):  # as timm's qwen3_vit
        num_classes, pretrained_cfg = 7, {'architecture': 'wrapped'}

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = torch.nn.Sequential(*map(torch.nn.BatchNorm2d, 5 * [3])), torch.nn.Linear(3, 7)

    monkeypatch.setattr(opening, 'check_model_name', lambda name: None)
    monkeypatch.setattr(opening, '_create', lambda *_: Wrapped())
    for prefix in ('', 'module.'):
        weights = {f'{prefix}{key}': value + 2 for key, value in Wrapped().state_dict().items()}
        torch.save({'arch': 'wrapped', 'state_dict': weights}, tmp_path / 'a.pth.tar')
        assert open_source(tmp_path / 'a.pth.tar').model.backbone[1].weight[0] == 3


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
    refused('there is no folder of weights at .*net; name the architecture', path)


def test_a_checkpoint_of_deit_names_a_side(tmp_path: Path) -> None:
    model = make(name := 'deit_tiny_distilled_patch16_224', img_size=48)  # with two classifiers
    ema = {key: value + 1 for key, value in model.state_dict().items()}
    torch.save({'model': model.state_dict(), 'model_ema': ema, 'args': argparse.Namespace(model=name, input_size=48)},
               tmp_path / 'best_checkpoint.pth')
    source = open_source(tmp_path / 'best_checkpoint.pth', use_ema=True)
    assert torch.equal(source.model.head.bias, ema['head.bias'])
    assert source.model.patch_embed.img_size == (48, 48)
    assert (source.data_config['input_size'], source.data_config['crop_mode']) == ((3, 48, 48), 'center')


def test_a_bare_state_dict_needs_a_name(tmp_path: Path) -> None:
    model = make()
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'bare.safetensors')
    for path in (tmp_path / 'bare.pth', tmp_path / 'bare.safetensors'):
        refused('does not say which model it is', path)
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


@pytest.mark.parametrize(('name', 'said'), [
    ('resnet20_asr_see', 'resnet20_asr_se'),
    ('resnet20_asr_se.nope', "unknown pretrained tag 'nope' of resnet20_asr_se"), ('resnet18.a1_in1', 'a1_in1k'),
    ('', "unknown model ''"), ('some/repo', 'hf-hub:some/repo'), ('gone.pth.tar', 'no checkpoint at gone.pth.tar')])
def test_unknown_names(name: str, said: str) -> None:
    refused(said, name)


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
    refused('is refused: it is a pickle that would run code', NAME, path)
    assert not (tmp_path / 'ran').exists()


def test_truncated_and_foreign_files(tmp_path: Path, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    safetensors.torch.save_file(make().state_dict(), tmp_path / 'whole.safetensors')
    for name, data, said in (
            ('half.pth.tar', whole[:len(whole) // 2], 'is truncated'), ('cut.pth.tar', whole[:-99], 'is truncated'),
            ('half.safetensors', (tmp_path / 'whole.safetensors').read_bytes()[:9999], 'is truncated'),
            ('text.pth', b'model: resnet20\n', 'is not a checkpoint'), ('empty.pth', b'', 'is empty'),
            ('noise.safetensors', bytes(100), 'not a safetensors file')):
        (tmp_path / name).write_bytes(data)
        refused(f'{name} .*{said}|{name} {said}', NAME, tmp_path / name)
    with zipfile.ZipFile(tmp_path / 'zip.pth', 'w') as file:
        file.writestr('readme.txt', 'not a checkpoint')
    refused('is not a checkpoint', NAME, tmp_path / 'zip.pth')
    for content, said in (([1, 2], 'holds a list'), ({'epoch': 3}, 'holds no weights')):
        torch.save(content, tmp_path / 'content.pth')
        refused(said, NAME, tmp_path / 'content.pth')


def test_what_does_not_fit(tmp_path: Path, checkpoint: Path) -> None:
    refused('trained for 7 classes, but 10 were asked for', NAME, checkpoint, num_classes=10)
    folder = timm_asr.save_fused(make(), tmp_path / 'fused')
    refused('has 7 classes, but 10 were asked for', folder, num_classes=10)
    refused('is an exported folder, which has no averaged weights', '', folder, use_ema=True)
    refused('have 1000 classes, but 10 were asked for', 'resnet18.a1_in1k', pretrained=True, num_classes=10)
    refused('resnet32_asr_se has no pretrained weights; name the weights with --checkpoint', 'resnet32_asr_se',
            pretrained=True)
    folded = save(tmp_path / 'folded.pth', timm_asr.fold_asr(make()), None)
    refused('keys .*; it is folded', NAME, folded)
    assert not timm_asr.has_asr(load_model('resnet20', folded))
    refused('too many .*; it is a trainable ASR checkpoint', 'resnet20', checkpoint)
    refused(r'does not fit resnet32_asr_se: \d+ keys missing', 'resnet32_asr_se', checkpoint)
    refused('does not fit', NAME, checkpoint, in_chans=1)
    refused('has no averaged weights; leave out --use-ema', '', checkpoint, use_ema=True)
    refused("cannot create resnet20_asr_se: .*unexpected keyword argument 'asr_deep'", NAME,
            model_kwargs={'asr_deep': 2})


@pytest.mark.parametrize(('config', 'weights', 'said'), [
    (None, b'', 'without config.json'), ('{', b'', 'is not valid JSON'), ('{}', b'', 'names no architecture'),
    ('{"architecture": "resnet21"}', b'', "unknown model 'resnet21'"),
    ('{"architecture": "resnet20", "pretrained_cfg": {}}', None, 'cannot create .*net'),
    ('{"architecture": "resnet20", "pretrained_cfg": {}}', bytes(20), 'cannot create .*net')])
def test_damaged_folders(tmp_path: Path, config: str | None, weights: bytes | None, said: str) -> None:
    folder = tmp_path / 'net'
    folder.mkdir()
    for name, content in (('config.json', config and config.encode()), ('model.safetensors', weights)):
        if content is not None:
            (folder / name).write_bytes(content)
    refused(said, folder)
    if config is None:
        (folder / 'model_best.pth.tar').touch()
        refused('net is the folder of a run, not a checkpoint: name .*net/model_best.pth.tar', folder)


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
        section |= {'format': 1, 'created': '2026-01-01T00:00:00+00:00', 'form': section['form'].replace('old', 'us'),
                    'arguments': {'lr': 0.1, 'data_dir': '/home/me'}}
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
    assert (again['timm_asr']['form'], again['timm_asr']['arguments']) == ('folded', {'lr': 0.1})


def test_what_was_trained_further_is_not_what_its_folder_says_of_the_run_before(tmp_path: Path) -> None:
    """transformers' save_pretrained writes other weights, and keeps the section of this package."""
    names = [str(i) for i in range(7)]
    folder = timm_asr.save_fused(make(), tmp_path / 'net', metrics={'top1': 90.0}, label_names=names,
                                 provenance={'seed': 7, 'epoch': 3})
    assert (open_source(folder).facts['seed'], open_source(folder).metrics) == (7, {'top1': 90.0})
    state = safetensors.torch.load_file(folder / 'model.safetensors')
    safetensors.torch.save_file({**state, 'fc.bias': state['fc.bias'] + 1}, folder / 'model.safetensors')
    source = open_source(folder)
    assert (source.facts, source.metrics, source.files) == ({'model': 'resnet20', 'asr': None}, None, {})
    assert source.label_names == names


def test_what_training_started_from(tmp_path: Path) -> None:
    model = make('resnet18')
    for args, wanted in (({'pretrained': True}, 'timm/resnet18.a1_in1k'), ({}, None),
                         ({'pretrained': True, 'pretrained_path': 'a.safetensors'}, None),
                         ({'pretrained': True, 'initial_checkpoint': 'a.pth'}, None),
                         ({'model': 'hf-hub:me/net@v1'}, 'me/net')):
        path = save(tmp_path / 'a.pth.tar', model, 'resnet18', args={'model': 'resnet18', **args})
        assert open_source(path).facts.get('base_model') == wanted
