"""export_onnx and export_program: fused, run against the model, refused where they differ; and the command."""

import copy
import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import timm
import torch
from export_helpers import command, digits_model, nudged, our_checkpoint
from helpers import images, randomize, relative_error, small

import timm_asr
from timm_asr.errors import BadInput
from timm_asr.export import graph

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module')
def model():
    return randomize(small('resnet20_se_asr_se', dtype=torch.float32, in_chans=1)).eval()


def run_onnx(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'images': x.numpy()})[0])


RUNS = {timm_asr.export_onnx: run_onnx, timm_asr.export_program: lambda file, x: torch.export.load(file).module()(x)}


def test_the_size_and_the_classes_are_those_of_the_model(tmp_path):
    """Not those that timm's configuration of the architecture names."""
    vit = randomize(timm.create_model('vit_tiny_asr_se', img_size=32, num_classes=3, depth=2)).float().eval()
    file = timm_asr.export_program(vit, tmp_path / 'vit.pt2')
    assert _about(file)['input_size'] == [3, 32, 32]
    small_net = small('resnet20_asr_se', dtype=torch.float32, in_chans=1, num_classes=5).eval()
    about = _about(timm_asr.export_program(small_net, tmp_path / 'net.pt2'))
    assert about['input_size'] == [1, 32, 32]
    assert len(about['mean']) == 1
    assert 'label_names' not in about


def _about(file):
    extra = {f'{graph.METADATA}.json': ''}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra[f'{graph.METADATA}.json'])


@pytest.mark.parametrize('fold_bn', [False, True])
def test_onnx(model, tmp_path, fold_bn):
    file = timm_asr.export_onnx(model, tmp_path / 'a.onnx', fold_bn=fold_bn)
    assert timm_asr.has_asr(model)
    for batch in (1, 5):
        x = images(model, batch, size=32)
        assert relative_error(model(x), run_onnx(file, x)) < 1e-5
    proto = onnx.load(file)
    inside, = (json.loads(p.value) for p in proto.metadata_props if p.key == 'timm_asr')
    assert (inside['model'], inside['input_size']) == ('resnet20_se_asr_se', [1, 32, 32])
    assert not any(p.startswith('BatchNorm') for p in {n.op_type for n in proto.graph.node}) or not fold_bn
    assert sys.prefix.encode() not in file.read_bytes()  # traces would name files of this machine
    assert timm_asr.__path__[0].encode() not in file.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ['a.onnx']


@pytest.mark.parametrize('name', ['resnet20_srm', *(pytest.param(name, marks=pytest.mark.slow) for name in (
    'resnet20_eca', 'resnet20_ras', 'resnet20_cbam', 'resnet20_sge', 'resnet20_dia_lstm_light', 'resnet50_spa',
    'vit_tiny_asr_se'))])
def test_onnxruntime_gives_the_same_logits_for_other_gates(name, tmp_path):
    model = randomize(small(name, dtype=torch.float32)).eval()
    x = images(model, 3, size=56 if name == 'resnet50_spa' else None)  # maps that no grid divides
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': tuple(x.shape[1:])}
    file = timm_asr.export_onnx(model, tmp_path / 'a.onnx', images=[x])
    for batch in (1, 3):
        assert relative_error(model(x[:batch]), run_onnx(file, x[:batch])) < 1e-5


@pytest.mark.parametrize('export', RUNS)
def test_images_of_any_size_where_the_network_can(export, model, tmp_path):
    file = export(model, tmp_path / 'a.out', any_size=True)
    for height, width in ((32, 32), (48, 80), (17, 33)):
        x = torch.randn(2, 1, height, width)
        assert relative_error(model(x), RUNS[export](file, x)) < 1e-5
    if export is timm_asr.export_onnx:
        inside = onnx.load(file).graph
        axes = [[size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
                for value in (*inside.input, *inside.output)]
        assert axes == [['batch', 1, 'height', 'width'], ['batch', 5]]
        assert not re.search(r'\bs\d+\b', str(inside.value_info))
    vit = timm.create_model('vit_tiny_asr_se', img_size=32, num_classes=3, depth=2).eval()
    with pytest.raises(BadInput, match='cannot be exported for images of any size .*; leave out --any-size') as caught:
        export(vit, tmp_path / 'b.out', any_size=True)
    assert '\n' not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ['a.out']


def test_onnx_pools_to_grids_of_cells_at_any_size(tmp_path):
    model = randomize(small('resnet20_spa', dtype=torch.float32, layers=(1, 1, 1))).eval()
    file = timm_asr.export_onnx(model, tmp_path / 'a.onnx', any_size=True)
    for height, width in ((32, 32), (41, 57)):
        x = torch.randn(2, 3, height, width)
        assert relative_error(model(x), run_onnx(file, x)) < 1e-5


@pytest.mark.parametrize(('name', 'form'), [
    ('resnet20_se', False), ('resnet20_dia_se', False), ('resnet20_dia_lstm', False), ('resnet20_spe', True),
    ('resnet20_srm', True)])
def test_onnx_has_the_attention_that_onnxruntime_runs_faster(name, form, tmp_path):
    """As trained, but for gates whose form has fewer operations and pools no other map, or that OpenVINO gets wrong."""
    model = randomize(small(name, dtype=torch.float32, layers=(1, 1, 1))).eval()
    kinds = []
    for every_form in (False, True):
        ready = timm_asr.reparameterize(copy.deepcopy(model)) if every_form else model
        file = timm_asr.export_onnx(ready, tmp_path / f'{every_form}.onnx')
        kinds.append(Counter(node.op_type for node in onnx.load(file).graph.node))
    assert (kinds[0] == kinds[1]) == form


@pytest.mark.parametrize('name', ['resnet20_srm', *(pytest.param(name, marks=pytest.mark.slow) for name in (
    'resnet20_dia_srm', 'resnet20_se', 'resnet20_eca', 'resnet20_ras', 'resnet20_spe', 'resnet20_cbam', 'resnet20_sge',
    'resnet20_dia_lstm'))])
def test_openvino_gives_the_same_logits(name, tmp_path):
    openvino = pytest.importorskip('openvino')
    model = randomize(small(name, dtype=torch.float32, layers=(1, 1, 1))).eval()
    file = timm_asr.export_onnx(model, tmp_path / 'a.onnx')
    network = openvino.compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    x = torch.randn(3, 3, 32, 32)
    for batch in (1, 3):
        found = torch.from_numpy(network([x[:batch].numpy()])[0])
        assert relative_error(model(x[:batch]), found) < 1e-5


TORCH_ALONE = """
import sys
for name in ('timm', 'timm_asr', 'torchvision'):
    sys.modules[name] = None
import torch
module = torch.export.load(sys.argv[1]).module()
x, wanted = torch.load(sys.argv[2], weights_only=True)
for batch in (1, len(x)):
    found = module(x[:batch])
    assert ((found - wanted[:batch]).abs().max() / wanted.abs().max()).item() < 1e-5
"""


def test_a_program_runs_by_pytorch_alone(model, tmp_path):
    file = timm_asr.export_program(model, tmp_path / 'a.pt2')
    x = images(model, 4, size=32)
    with torch.no_grad():
        torch.save((x, model(x)), tmp_path / 'case.pt')
    line = [sys.executable, '-c', TORCH_ALONE, file, tmp_path / 'case.pt']
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (sys.prefix, timm_asr.__path__[0], str(tmp_path)):
        assert path.encode() not in file.read_bytes()
    assert _about(file)['model'] == 'resnet20_se_asr_se'


def test_what_differs_is_not_kept(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r'computes differs by inf of the largest logit on real images'):
        timm_asr.export_program(model, tmp_path / 'a', images=[torch.full((1, 1, 32, 32), torch.nan)])
    reparameterize = graph.reparameterize

    def wrong(module, **kwargs):
        module = reparameterize(module, **kwargs)
        module.fc.weight.data *= 1.01
        return module
    monkeypatch.setattr(graph, 'reparameterize', wrong)
    with pytest.raises(ValueError, match=r'computes differs by .* of the largest logit on random images'):
        timm_asr.export_program(model, tmp_path / 'a')
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing(model, tmp_path, monkeypatch):
    find = graph.importlib.util.find_spec
    monkeypatch.setattr(graph.importlib.util, 'find_spec', lambda name: None if 'onnxruntime' in name else find(name))
    with pytest.raises(BadInput, match=r'^ONNX needs what is not installed: pip install onnxruntime$'):
        timm_asr.export_onnx(model, tmp_path / 'a.onnx')


@pytest.mark.parametrize('export', RUNS)
def test_files_that_are_there(export, tmp_path):
    checkpoint = our_checkpoint(tmp_path / 'last.pth.tar', model := digits_model(), nudged(model))
    (file := tmp_path / 'a.pt2').write_text('mine')
    with pytest.raises(BadInput, match='a.pt2 is there already; choose another name'):
        export(checkpoint, file)
    with pytest.raises(BadInput, match='is a folder, and a file is to be written there'):
        export(checkpoint, tmp_path)
    assert file.read_text() == 'mine'
    export(checkpoint, file, use_ema=True, overwrite=True)
    assert relative_error(nudged(model)(x := images(model, size=32)), RUNS[export](file, x)) < 1e-5


def test_what_cannot_be_followed_is_one_sentence(tmp_path):
    model = timm.create_model('resnet20', num_classes=3)

    def forward(x):
        return x.mean((1, 2, 3)).reshape(-1, 1) if float(x.sum()) > 0 else x.flatten(1)
    model.forward = forward
    with pytest.raises(BadInput, match=r'^this ASRCifarResNet cannot be exported \(\w+') as caught:
        timm_asr.export_program(model, tmp_path / 'a.pt2')
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    checkpoint = our_checkpoint(tmp_path / 'last.pth.tar', digits_model())
    status, out, err = command(
        capsys, 'export', checkpoint, '--onnx', tmp_path / 'a.onnx', '--torch-export', tmp_path / 'a.pt2', '-j', 0)
    assert (status, err) == (0, '')
    steps = [line.split()[0] for line in out.splitlines() if line[0] != ' ']
    assert steps == ['export', 'compare', 'fold', 'check', 'written', 'fold', 'check', 'written']
    for by in ('onnxruntime', 'torch.export'):  # the digits of the run are at hand
        assert f'check    logits by {by} differ by ' in out
    assert out.count('real ones') == 2
    about = json.loads(onnx.load(tmp_path / 'a.onnx').metadata_props[0].value)
    assert (about['label_names'][3], about['mean']) == ('digit 3', [0.3053])
