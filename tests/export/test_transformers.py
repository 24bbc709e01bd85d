"""What was exported, loaded by transformers: in processes that cannot import this package, but where it is needed."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from helpers import images, randomize, small
from PIL import Image
from safetensors.torch import save_file

from timm_asr import create_model, save_fused

pytest.importorskip('transformers')

WITHOUT = """
import sys
sys.modules['timm_asr'] = None  # any import of it fails
"""
CHECK = """
import json, sys, warnings
warnings.simplefilter('ignore')
import timm, torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, trust, work = sys.argv[1], {'trust_remote_code': True} if sys.argv[2] == 'trust' else {}, sys.argv[3]
case = load_file(folder + '.case.safetensors')
model = AutoModelForImageClassification.from_pretrained(folder, **trust).eval()
assert type(model).__name__ == ('TimmAsrForImageClassification' if trust else 'TimmWrapperForImageClassification')
def error(logits):
    return ((logits - case['logits']).abs().max() / case['logits'].abs().max()).item()
with torch.no_grad():
    assert error(model(case['images']).logits) < 1e-5
    assert model.config.id2label == {0: 'ant', 1: 'bee', 2: 'cow'}, model.config.id2label
    found = pipeline('image-classification', folder, **trust)(work + '/image.png')
    assert {one['label'] for one in found} == {'ant', 'bee', 'cow'}
    assert abs(sum(one['score'] for one in found) - 1) < 1e-5
    features = AutoModel.from_pretrained(folder, **trust).eval()(case['images'])
    assert features.pooler_output.shape[0] == 2
    other = AutoModelForImageClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True, **trust)
    assert other.eval()(case['images']).logits.shape == (2, 7)
    model.save_pretrained(work + '/saved')
    back = timm.create_model('local-dir:' + work + '/saved', pretrained=True).eval()
    assert error(back(case['images'])) < 1e-5
print('fine')
"""


def make(folder, name):
    if name == 'convnext':
        model = create_model('convnext_atto', asr='se', num_classes=3, depths=(1, 1, 1, 1))
    else:
        model = timm.create_model(name, num_classes=3) if name.startswith('repvgg') else small(
            name, dtype=torch.float32, num_classes=3)
    x = images(randomize(model).eval())
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': tuple(x.shape[1:])}
    save_fused(model, folder, label_names=['ant', 'bee', 'cow'])
    with torch.no_grad():
        save_file({'images': x, 'logits': model(x)}, f'{folder}.case.safetensors')
    Image.effect_noise((48, 40), 60).convert('RGB').save(folder.parent / 'image.png')
    return folder


def run(code, *words, home):
    env = {**os.environ, 'HF_HOME': str(home), 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-c', code, *map(str, words)], capture_output=True, text=True, env=env)


@pytest.mark.parametrize('name', [
    'resnet18_asr_se',
    *(pytest.param(name, marks=pytest.mark.slow) for name in ('repvgg_a0_asr_se', 'vit_tiny_asr_eca', 'convnext'))])
def test_transformers_alone_loads_stock_architectures(tmp_path, name):
    folder = make(tmp_path / 'net', name)
    config = json.loads((folder / 'config.json').read_text())
    assert (config['num_classes'], 'num_classes' in config['model_args'], 'auto_map' in config) == (3, False, False)
    ran = run(WITHOUT + CHECK, folder, 'alone', tmp_path, home=tmp_path / 'home')
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_architectures_that_timm_lacks_come_with_a_few_lines_of_code(tmp_path):
    folder = make(tmp_path / 'net', 'resnet20_asr_se')
    config = json.loads((folder / 'config.json').read_text())
    assert config['auto_map']['AutoModelForImageClassification'] == ('modeling_timm_asr.TimmAsrForImageClassification')
    assert len((folder / 'modeling_timm_asr.py').read_text().splitlines()) < 30
    ran = run(CHECK, folder, 'trust', tmp_path, home=tmp_path / 'home')
    assert ran.returncode == 0, ran.stderr[-3000:]
    ran = run(WITHOUT + CHECK, folder, 'trust', tmp_path, home=tmp_path / 'home2')
    assert ran.returncode != 0
    assert 'ImportError: These weights need the package timm_asr' in ran.stderr.splitlines()[-1]
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 3  # timm reads the folder still


def test_the_trainable_network_loads_beside_this_package(tmp_path):
    from transformers import AutoModelForImageClassification

    model = randomize(timm.create_model('resnet20_asr_se', layers=(1, 1, 1), num_classes=3)).eval()
    folder = save_fused(model, tmp_path / 'net', label_names=['ant', 'bee', 'cow'], keep_trainable=True) / 'trainable'
    found = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert found.config.id2label == {0: 'ant', 1: 'bee', 2: 'cow'}
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(found(x).logits, model(x), atol=1e-5)
    assert any(key.endswith('psi') for key in found.state_dict())
