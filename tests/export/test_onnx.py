"""Exported to ONNX and run by onnxruntime, models with attention give the same logits, at other batch sizes too."""

import pytest
import torch
from helpers import images, randomize, relative_error, small

from timm_asr import export_onnx

pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

NAMES = ['resnet83_spe', 'resnet20_asr_se', 'resnet20_dia_lstm']
MORE = [
    'resnet83_se', 'resnet20_eca', 'resnet83_spa', 'resnet83_srm', 'resnet83_ras', 'resnet20_ras_spa', 'resnet83_cbam',
    'resnet20_sge', 'resnet83_dia_se', 'resnet83_dia_srm', 'resnet83_dia_lstm', 'resnet83_dia_lstm_light',
    'wrn52_4_dia_lstm', 'resnet18_se', 'resnet50_spa', 'resnet50_ras', 'vit_tiny_asr_se']


@pytest.mark.parametrize('name', [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_onnxruntime_gives_the_same_logits(name, tmp_path):
    model = randomize(small(name, dtype=torch.float32)).eval()
    x = images(model, 3, size=56 if name == 'resnet50_spa' else None)  # maps that no grid divides
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': tuple(x.shape[1:])}
    with torch.no_grad():
        expected = model(x)
    file = export_onnx(model, tmp_path / 'a.onnx', fold_bn='resnet20' in name, images=[x])
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    for batch in (1, 3):
        y, = session.run(None, {'images': x[:batch].numpy()})
        assert relative_error(expected[:batch], torch.from_numpy(y)) < 1e-5
