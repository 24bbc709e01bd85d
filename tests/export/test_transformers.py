"""What was exported, loaded by transformers: in processes that cannot import this package, but where it is needed."""

import json
import os
import re
import subprocess
import sys

import pytest
import timm
import torch
from helpers import images, randomize, small
from hub_helpers import make_folder
from PIL import Image
from safetensors.torch import save_file

from timm_asr import create_model, save_fused
from timm_asr.export.card import model_card

pytest.importorskip('transformers')

CHECK = """
import json, sys, warnings
warnings.simplefilter('ignore')
work, names, trust = sys.argv[1], sys.argv[2].split(), {'trust_remote_code': True} if sys.argv[3] == 'trust' else {}
if not trust:
    sys.modules['timm_asr'] = None  # any import of it fails
import timm, torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, pipeline
for folder in (f'{work}/{name}' for name in names):
    case = load_file(folder + '.case.safetensors')
    def error(logits):
        return ((logits - case['logits']).abs().max() / case['logits'].abs().max()).item()
    model = AutoModelForImageClassification.from_pretrained(folder, **trust).eval()
    assert type(model).__name__ == ('TimmAsrForImageClassification' if trust else 'TimmWrapperForImageClassification')
    with torch.no_grad():
        assert error(model(case['images']).logits) < 1e-5
        assert model.config.id2label == {0: 'ant', 1: 'bee', 2: 'cow'}, model.config.id2label
        found = pipeline('image-classification', folder, **trust)(work + '/image.png')
        assert {one['label'] for one in found} == {'ant', 'bee', 'cow'}
        assert abs(sum(one['score'] for one in found) - 1) < 1e-5
        features = AutoModel.from_pretrained(folder, **trust).eval()(case['images'])
        assert features.pooler_output.shape[0] == 2
        other = AutoModelForImageClassification.from_pretrained(
            folder, num_labels=7, ignore_mismatched_sizes=True, **trust)
        assert other.eval()(case['images']).logits.shape == (2, 7)
        model.save_pretrained(folder + '.saved')
        back = timm.create_model('local-dir:' + folder + '.saved', pretrained=True).eval()
        assert error(back(case['images'])) < 1e-5
try:
    AutoModelForImageClassification.from_pretrained(work + '/resnet20_asr_se', trust_remote_code=True)
except ImportError as error:
    assert not trust
    assert str(error).startswith('These weights need the package timm_asr'), error
else:
    assert trust
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


STOCK = ['resnet18_asr_se', 'repvgg_a0_asr_se', 'vit_tiny_asr_eca', 'convnext']


@pytest.mark.slow
def test_transformers_loads_it_alone_where_timm_has_the_architecture_and_by_a_few_lines_of_code_elsewhere(tmp_path):
    for name in (*STOCK, 'resnet20_asr_se'):
        folder = make(tmp_path / name, name)
        config = json.loads((folder / 'config.json').read_text())
        assert (config['num_classes'], 'num_classes' in config['model_args'], 'auto_map' in config) == (
            3, False, name not in STOCK)
    assert config['auto_map']['AutoModelForImageClassification'] == 'modeling_timm_asr.TimmAsrForImageClassification'
    assert len((folder / 'modeling_timm_asr.py').read_text().splitlines()) < 30
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 3  # timm reads the folder still
    for names, trust in ((' '.join(STOCK), 'alone'), ('resnet20_asr_se', 'trust')):
        env = {**os.environ, 'HF_HOME': str(tmp_path / trust), 'HF_HUB_OFFLINE': '1'}
        line = [sys.executable, '-c', CHECK, tmp_path, names, trust]
        ran = subprocess.run(line, capture_output=True, text=True, env=env)
        assert ran.returncode == 0, ran.stderr[-3000:]


def test_the_trainable_network_loads_beside_this_package(tmp_path):
    from transformers import AutoModelForImageClassification

    model = randomize(timm.create_model('resnet20_asr_se', layers=(1, 1, 1), num_classes=3)).eval()
    folder = save_fused(model, tmp_path / 'net', label_names=['ant', 'bee', 'cow'], keep_trainable=True) / 'trainable'
    found = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert found.config.id2label == {0: 'ant', 1: 'bee', 2: 'cow'}
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(found(x).logits, model(x), atol=1e-5)
    assert any(key.endswith('psi') for key in found.state_dict())


@pytest.mark.parametrize(('name', 'channels'), [('resnet18_asr_se', 3), ('resnet18_asr_se', 1), ('resnet20_asr_se', 1)])
def test_the_code_of_the_card_runs(tmp_path, monkeypatch, capsys, name, channels):
    """transformers' pipeline makes every image RGB, which a network of grey images does not take."""
    folder = make_folder(tmp_path / 'net', name, trainable=False, num_classes=3, in_chans=channels)
    block, = [block for block in re.findall(r'```python\n(.*?)```', model_card(folder, 'alice/net'), re.DOTALL)
              if 'transformers' in block]
    Image.effect_noise((48, 40), 60).convert('RGB').save(tmp_path / 'image.jpg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('transformers.dynamic_module_utils.HF_MODULES_CACHE', str(tmp_path / 'modules'))
    monkeypatch.setattr(sys, 'path', [*sys.path])  # to which transformers adds that folder
    exec(block.replace('alice/net', str(folder)), {})
    assert capsys.readouterr().out.startswith("[{'label': " if channels == 3 else 'tensor([[')


def test_no_code_opens_an_image_for_a_network_of_five_channels(tmp_path):
    card = model_card(make_folder(tmp_path / 'net', trainable=False, in_chans=5), 'alice/net')
    assert 'image.jpg' not in card
    assert 'torch.randn(2, *size)' in card
