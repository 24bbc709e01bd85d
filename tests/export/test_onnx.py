"""Exported to ONNX and run by onnxruntime, models with attention give the same logits, at other batch sizes too."""

import io

import pytest
import timm
import torch
from helpers import images, randomize, relative_error, small

pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

NAMES = [
    'resnet83_se', 'resnet20_eca', 'resnet83_spa', 'resnet83_srm', 'resnet83_spe', 'resnet83_ras', 'resnet20_ras_spa',
    'resnet83_cbam', 'resnet20_sge', 'resnet83_dia_se', 'resnet83_dia_srm', 'resnet20_dia_lstm', 'resnet83_dia_lstm',
    'resnet83_dia_lstm_light', 'wrn52_4_dia_lstm', 'resnet18_se', 'resnet50_spa', 'resnet50_ras', 'resnet20_asr_se',
    'vit_tiny_asr_se',
]


@pytest.mark.filterwarnings('ignore')  # the exporter that needs no further package is the older one, and says so
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('fold_bn', [False, True])
def test_onnxruntime_gives_the_same_logits(name, fold_bn):
    model = randomize(small(name, dtype=torch.float32)).eval()
    x = images(model, 3, size=56 if name == 'resnet50_spa' else None)  # maps that no grid divides
    with torch.no_grad():
        expected = model(x)
        model.reparameterize(fold_bn=fold_bn)
        file = io.BytesIO()
        torch.onnx.export(
            model, (x[:2],), file, dynamo=False, input_names=['x'], output_names=['y'],
            dynamic_axes={'x': {0: 'batch'}, 'y': {0: 'batch'}})
    session = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    for batch in (1, 3):
        y, = session.run(None, {'x': x[:batch].numpy()})
        assert relative_error(expected[:batch], torch.from_numpy(y)) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['resnet83_se', 'resnet83_spa', 'resnet83_spe', 'resnet83_dia_lstm'])
def test_the_exporter_by_torch_export(name):
    pytest.importorskip('onnxscript')
    model = randomize(timm.create_model(name, num_classes=5, layers=(2, 1, 1))).eval().reparameterize(fold_bn=True)
    x = images(model, 2)
    program = torch.onnx.export(model, (x,), dynamo=True)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=['CPUExecutionProvider'])
    y, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative_error(model(x), torch.from_numpy(y)) < 1e-5
