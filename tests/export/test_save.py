"""save_fused: a folder that timm loads by name, with stock timm alone where timm has the architecture."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from helpers import clone, images, randomize, relative_error, small
from safetensors.torch import load_file
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.utils import ModelEma, ModelEmaV3, freeze
from torch import nn

from timm_asr import create_model, has_asr, load_trainable, save_fused
from timm_asr.checkpoints.open import open_source
from timm_asr.checkpoints.read import read_config
from timm_asr.errors import BadInput

FRESH = """
import json, sys, torch, timm
for line in json.loads(sys.argv[1]):
    if line['ours']:
        import timm_asr
    else:
        assert 'timm_asr' not in sys.modules
    model = timm.create_model(f"local-dir:{line['folder']}", pretrained=True).eval()
    x, logits = torch.load(f"{line['folder']}/check.pt", weights_only=True)
    error = ((model(x) - logits).abs().max() / logits.abs().max()).item()
    assert error < 1e-5, (line, error)
    assert line['ours'] == type(model).__module__.startswith('timm_asr'), type(model)
print('loaded', len(json.loads(sys.argv[1])))
"""


def data_of(model):
    config = timm.data.resolve_model_data_config(model)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def reload(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def test_a_fresh_process_loads_what_was_saved(tmp_path):
    cases = [
        ('resnet18_asr_se', {'num_classes': 7, 'in_chans': 1, 'global_pool': 'max', 'asr_depth': 2, 'asr_init': 0.3,
                             'rd_ratio': 0.5}, False),  # of which stock timm knows the first three
        ('vit_tiny_asr_eca', {'num_classes': 3, 'img_size': 64}, False),
        ('repvgg_a0_asr_ie', {'num_classes': 3}, False),  # with its branches
        ('resnet20_se_asr_se', {'rd_ratio': 0.5, 'num_classes': 100}, True)]
    lines = []
    for name, kwargs, ours in cases:
        model = randomize(timm.create_model(name, **kwargs)).eval()
        x = images(model, 2)
        folder = save_fused(model, tmp_path / name)
        assert has_asr(model)  # the model itself is left as it was
        # Safetensors only, and nothing left over from writing.
        assert sorted(p.name for p in folder.iterdir()) == [
            'config.json', 'model.safetensors', *(['modeling_timm_asr.py'] if ours else [])]
        with torch.no_grad():
            torch.save((x, model(x)), folder / 'check.pt')
        lines.append({'folder': str(folder), 'ours': ours})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(name for name, _, _ in cases)
    out = subprocess.run([sys.executable, '-c', FRESH, json.dumps(lines)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert f'loaded {len(cases)}' in out.stdout
    branches = load_file(tmp_path / 'repvgg_a0_asr_ie' / 'model.safetensors')
    timm.create_model('repvgg_a0', num_classes=3).load_state_dict(branches, strict=True)


def test_nothing_of_the_stock_weights_leaks_in(tmp_path):
    model = create_model('resnet18.a1_in1k', asr='se', num_classes=3)
    cfg = model.pretrained_cfg
    foreign = {'tag', 'license', 'paper_ids', 'origin_url', 'hf_hub_id', 'url', 'test_input_size', 'test_crop_pct'}
    assert foreign <= set(cfg)  # there is something that could leak
    folder = save_fused(model, tmp_path, keep_trainable=True)
    assert not foreign & set(read_config(folder)['pretrained_cfg'])
    assert not {'test_input_size', 'test_crop_pct'} & set(load_trainable(folder).pretrained_cfg)
    text = (folder / 'config.json').read_text()
    assert not [cfg[key] for key in ('tag', 'license', 'origin_url') if str(cfg[key]) in text]


def test_what_the_images_went_through_and_the_names_of_the_classes(tmp_path):
    data = {'input_size': (1, 48, 40), 'mean': (0.3,), 'std': (0.4,), 'crop_pct': 0.75, 'crop_mode': 'border',
            'interpolation': 'bilinear'}
    model = timm.create_model('resnet18_asr_se', num_classes=3, in_chans=1)
    folder = save_fused(model, tmp_path, data_config=data, label_names=['cat', 'dog', 'owl'])
    loaded = reload(folder)
    assert data_of(loaded) == data
    assert (loaded.num_classes, loaded.conv1.in_channels) == (3, 1)
    assert loaded.pretrained_cfg['label_names'] == ['cat', 'dog', 'owl']
    again = save_fused(folder, tmp_path / 'again')
    assert read_config(again)['label_names'] == ['cat', 'dog', 'owl']
    assert data_of(reload(again)) == data
    with pytest.raises(ValueError, match='2 label names were given for 3 classes'):
        save_fused(model, tmp_path / 'x', label_names=['cat', 'dog'])


def test_wrappers_layouts_and_precisions(tmp_path, request):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    request.addfinalizer(torch.distributed.destroy_process_group)
    model = randomize(small('resnet20_asr_se')).float().eval()
    x = images(model)
    expected = model(x)
    inside = clone(model)
    inside.layer1 = torch.compile(inside.layer1, backend='eager')
    for i, wrapped in enumerate([
            nn.parallel.DistributedDataParallel(torch.compile(clone(model), backend='eager')),
            nn.DataParallel(clone(model)), torch.compile(clone(model), backend='eager'), ModelEma(clone(model)), inside,
            nn.DataParallel(torch.compile(ModelEmaV3(clone(model)), backend='eager')), clone(model).double(),
            clone(model).to(memory_format=torch.channels_last), convert_sync_batchnorm(clone(model)),
            convert_splitbn_model(clone(model), 2)]):
        folder = save_fused(wrapped, tmp_path / str(i))
        assert relative_error(expected, reload(folder)(x)) < 1e-5
    freeze(model, ['bn1'])  # whose frozen norm counts no batches
    assert relative_error(expected, reload(save_fused(model, tmp_path / 'frozen'))(x)) < 1e-5
    half = clone(model).bfloat16()
    loaded = reload(save_fused(half, tmp_path / 'half'))  # folded in float32, so that it rounds once
    assert relative_error(half.float()(x), loaded(x)) < 1e-5
    assert half.fc.weight.dtype == torch.float32  # by .float() above: the export itself worked on a copy


def test_the_classes_of_shipped_weights_are_not_those_of_other_networks(tmp_path):
    """Without weights timm gives the architecture the configuration of its pretrained ones all the same."""
    model = timm.create_model('resnet20_asr_se', num_classes=10)
    assert model.pretrained_cfg['label_names']
    assert 'label_names' not in read_config(save_fused(model, tmp_path / 'other', check=False))
    named = save_fused(model, tmp_path / 'named', check=False, label_names=list('abcdefghij'))
    assert read_config(named)['label_names'] == list('abcdefghij')
    shipped = save_fused('resnet20_asr_se.cifar10', tmp_path / 'shipped', check=False)
    assert read_config(shipped)['label_names'][0] == 'airplane'


def test_files_of_somebody_else_stay(tmp_path):
    """Names that an export uses may be there already, without one."""
    (tmp_path / 'trainable').mkdir()
    (tmp_path / 'trainable' / 'mine.pt').write_bytes(b'mine')
    (tmp_path / 'metrics.json').write_text('{}')
    model = timm.create_model('resnet20_asr_se')
    with pytest.raises(BadInput, match='has a metrics.json already'):
        save_fused(model, tmp_path, check=False)
    save_fused(model, tmp_path, check=False, overwrite=True)
    assert (tmp_path / 'trainable' / 'mine.pt').read_bytes() == b'mine'


def test_shared_tensors(tmp_path):
    model = randomize(small('resnet20_asr_se', layers=(3, 1, 1))).float().eval()
    model.layer1[2] = model.layer1[1]
    model.layer1[1].conv1.weight = model.layer1[1].conv2.weight
    x = images(model)
    assert relative_error(model(x), reload(save_fused(model, tmp_path))(x)) < 1e-5


def test_changes_after_construction(tmp_path):
    model = timm.create_model('resnet18_asr_se', num_classes=5)
    model.reset_classifier(3, 'max')
    loaded = reload(save_fused(model, tmp_path / 'reset'))
    assert (loaded.num_classes, loaded.global_pool.pool_type) == (3, 'max')
    vit = timm.create_model('vit_tiny_asr_se', num_classes=3, img_size=32)
    vit.set_input_size(img_size=48)
    assert reload(save_fused(vit, tmp_path / 'vit')).patch_embed.img_size == (48, 48)


def test_saving_again_replaces_the_files_only_when_told(tmp_path):
    first, second = (randomize(timm.create_model('resnet20_asr_se'), seed) for seed in (1, 2))
    save_fused(first, tmp_path)
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(BadInput, match='has a model.safetensors already'):
        save_fused(second, tmp_path)
    save_fused(first, tmp_path, keep_trainable=True, overwrite=True)
    assert torch.equal(load_file(tmp_path / 'model.safetensors')['fc.bias'], first.fc.bias)
    save_fused(second, tmp_path, overwrite=True)
    assert torch.equal(load_file(tmp_path / 'model.safetensors')['fc.bias'], second.fc.bias)
    # The trainable form of the first is gone, what is not ours stays, and nothing half-written is left.
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'config.json', 'model.safetensors', 'modeling_timm_asr.py', 'notes.txt']
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes['model.safetensors'] == modes['config.json']  # readable by whoever reads the folder


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('resnet20_dia_lstm', {'rd_ratio': 0.5}),
    ('vit_tiny_patch16_224', {'asr': 'se', 'reg_tokens': 4, 'depth': 2, 'img_size': 32})])
def test_every_argument_of_the_constructor_is_written(name, kwargs, tmp_path):
    model = randomize(create_model(name, num_classes=3, **kwargs)).eval()
    folder = save_fused(model, tmp_path / 'a', keep_trainable=has_asr(model))
    x = images(model)
    assert relative_error(model(x), reload(folder)(x)) < 1e-5
    assert relative_error(model(x), load_trainable(folder).eval()(x)) < 1e-5
    if has_asr(model):
        assert open_source(folder / 'trainable', drop_rate=0.3).model.head_drop.p == 0.3
        with pytest.raises(BadInput, match='cannot be loaded'):
            open_source(folder / 'trainable', in_chans=1)


def test_keep_trainable(tmp_path):
    name = 'resnet20_asr_se'
    model = randomize(timm.create_model(name, num_classes=10)).train()
    folder = save_fused(model, tmp_path / 'a', keep_trainable=True, provenance={'dataset': 'torch/cifar10'})
    fused, kept = read_config(folder), read_config(folder / 'trainable')
    assert (fused['architecture'], kept['architecture']) == ('resnet20', name)
    assert [c['timm_asr']['form'] for c in (fused, kept)] == ['folded', 'trainable']
    loaded = reload(folder / 'trainable')
    assert has_asr(loaded)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    # The trainable form makes the same folder again.
    again = save_fused(folder / 'trainable', tmp_path / 'b', keep_trainable=True)
    for first, second in ((folder, again), (folder / 'trainable', again / 'trainable')):
        assert read_config(first)['timm_asr']['weights_sha256'] == read_config(second)['timm_asr']['weights_sha256']
