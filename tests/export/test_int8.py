"""int8 networks: their accuracy, and what folding does to the codes of the weights."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from export_helpers import command, digits_model, our_checkpoint
from helpers import asr_layers, randomize, relative_error, small
from PIL import Image

import timm_asr
from timm_asr.data import Digits
from timm_asr.errors import BadInput
from timm_asr.export.int8 import onnx_top1, quantize_onnx

onnx = pytest.importorskip('onnx')


def codes(file):
    """int8 weights of the convolutions, by the node they feed, in the order of the graph."""
    graph = onnx.load(str(file)).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == 'DequantizeLinear'}
    return [weights[dequantized[node.input[1]]] for node in graph.node if node.op_type == 'Conv']


def int8(model, folder, name, images):
    file = timm_asr.export_onnx(model, folder / f'{name}.onnx', fold_bn=True)
    return quantize_onnx(file, folder / f'{name}.int8.onnx', images)


def without_vectors(model):
    """The network with its vectors left out: what there was to scale."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if module in asr_layers(model):
            model.set_submodule(name, module.layer)
    return model


@pytest.mark.slow
def test_folding_keeps_the_codes_where_output_channels_are_scaled(tmp_path):
    model = randomize(timm.create_model('resnet20_asr_se', layers=(1, 1, 1))).eval()
    images = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    plain = codes(int8(without_vectors(model), tmp_path, 'plain', images))
    folded = codes(int8(model, tmp_path, 'folded', images))
    assert len(plain) == len(folded) >= 7
    moved = 0
    for before, after in zip(plain, folded, strict=True):
        assert before.dtype == after.dtype == 'int8'
        difference = abs(before.astype(int) - after.astype(int))
        assert difference.max() <= 1  # a code on the edge may round the other way
        moved += int((difference > 0).sum())
    assert moved <= 1e-4 * sum(code.size for code in plain)
    unequal = without_vectors(model)
    torch.nn.init.normal_(unequal.layer1[0].conv1.weight)
    assert (codes(int8(unequal, tmp_path, 'other', images))[1] != plain[1]).any()  # the codes can tell networks apart


def merged_codes(model):
    """int8 weights of a network whose branches are merged, as the quantizer makes them, without it."""
    weights = [m.weight for m in timm_asr.reparameterize(copy.deepcopy(model), fold_bn=True).modules()
               if isinstance(m, torch.nn.Conv2d)]
    return torch.cat([(127 * w / w.abs().amax((1, 2, 3), keepdim=True)).round().flatten() for w in weights])


@pytest.mark.parametrize(('sites', 'kept'), [(None, True), (['stages.*.*.conv_kxk.bn'], False)])
def test_parallel_branches_keep_the_codes_where_a_vector_scales_their_sum(sites, kept):
    model = small('repvgg_a0_cifar' if sites else 'repvgg_a0_cifar_asr_se', dtype=torch.float32)
    if sites:
        timm_asr.attach_asr(model, 'se', sites=sites)
    model = randomize(model).eval()
    changed = (merged_codes(model) != merged_codes(without_vectors(model))).float().mean()
    assert changed < 1e-4 if kept else changed > 0.3


def test_int8_of_trained_weights_keeps_the_accuracy(tmp_path):
    model = timm.create_model('resnet20_asr_se.cifar10', pretrained=True).eval()
    digits = Digits('validation')  # the network has not seen them: what is compared is what both say of them
    images = torch.stack([torch.from_numpy(np.array(digits[i][0].convert('RGB').resize((32, 32)))) for i in range(64)])
    images = images.permute(0, 3, 1, 2).float() / 255
    images = (images - 0.47) / 0.25
    file = timm_asr.export_onnx(model, tmp_path / 'float.onnx', fold_bn=True)
    quantized = quantize_onnx(file, tmp_path / 'int8.onnx', images.split(16))
    with torch.no_grad():
        said = model(images).argmax(1)
    assert onnx_top1(file, [(images, said)]) == 100
    assert onnx_top1(quantized, [(images[:32], said[:32]), (images[32:], said[32:])]) > 80
    assert onnx_top1(file, [(images, (said + 1) % 10)]) == 0
    assert quantized.stat().st_size < 0.5 * file.stat().st_size


def test_openvino_computes_what_onnxruntime_does(tmp_path):
    """Of SGE, which OpenVINO got wrong where positions were counted by a map's shape."""
    openvino, onnxruntime = pytest.importorskip('openvino'), pytest.importorskip('onnxruntime')
    model = randomize(small('resnet20_sge', dtype=torch.float32, layers=(1, 1, 1))).eval()
    x = torch.randn(8, 3, 32, 32)
    file = int8(model, tmp_path, 'sge', [x])
    wanted, = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider']).run(None, {'images': x.numpy()})
    found = openvino.compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})([x.numpy()])[0]
    assert relative_error(torch.from_numpy(wanted), torch.from_numpy(found)) < 0.05  # quantization differs in detail


def test_without_images(tmp_path):
    with pytest.raises(BadInput, match='needs images to calibrate on'):
        quantize_onnx(tmp_path / 'float.onnx', tmp_path / 'int8.onnx', [])
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(BadInput, match=r'int8.onnx cannot be written \('):
        quantize_onnx(tmp_path / 'float.onnx', tmp_path / 'file' / 'int8.onnx', [torch.zeros(1, 3, 32, 32)])
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_the_command_without_images(tmp_path, capsys):
    status, _, err = command(
        capsys, 'export', 'resnet20_se.cifar10', '--onnx', tmp_path / 'x.onnx', '--int8', tmp_path / 'y.onnx')
    assert status == 2
    assert 'no images to calibrate int8 on: give the folder of the images (--data-dir DIR)' in err
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    """With the digits of the run, whose training images calibrate and whose others tell the accuracy."""
    checkpoint = our_checkpoint(tmp_path / 'last.pth.tar', digits_model())
    files = {name: tmp_path / name for name in ('float.onnx', 'int8.onnx', 'folder')}
    status, out, err = command(
        capsys, 'export', checkpoint, '--onnx', files['float.onnx'], '--int8', files['int8.onnx'],
        '-o', files['folder'], '--samples', 70, '-j', 0)
    assert (status, err) == (0, '')
    metrics = json.loads((files['folder'] / 'metrics.json').read_text())
    assert metrics['int8_samples'] == 70
    assert (f'int8     calibrated on 70 images of the split train; top-1 on 359 images {metrics["top1_onnx"]:.2f} % in '
            f'float and {metrics["top1_int8"]:.2f} % in int8') in out
    held_out = Digits('validation')
    images = torch.stack([torch.from_numpy(np.array(image.convert('L').resize((32, 32), 2))) for image, _ in held_out])
    images = (images[:, None].float() / 255 - 0.3053) / 0.376
    pairs = [(images, torch.tensor([label for _, label in held_out]))]
    for key, name in (('top1_onnx', 'float.onnx'), ('top1_int8', 'int8.onnx')):
        assert onnx_top1(files[name], pairs) == pytest.approx(metrics[key], abs=0.6)  # resized by another program
    assert metrics['top1_onnx'] == pytest.approx(metrics['top1_folded'])
    operations = {node.op_type for node in onnx.load(files['float.onnx']).graph.node}
    assert 'BatchNormalization' not in operations
    graph = onnx.load(files['int8.onnx']).graph
    assert 'QuantizeLinear' in {node.op_type for node in graph.node}
    zeros = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith('zero_point')]
    assert len(zeros) > 20
    assert not any(zero.any() for zero in zeros)  # symmetric


@pytest.mark.parametrize('splits', [('val',), ('train', 'val')])
def test_which_images_it_is_calibrated_on(splits, tmp_path, capsys):
    for split in splits:
        for label in '01':
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            Image.new('L', (32, 32), 40).save(tmp_path / 'data' / split / label / 'a.png')
    checkpoint = our_checkpoint(tmp_path / 'last.pth.tar', digits_model())
    status, out, _ = command(capsys, 'export', checkpoint, '--onnx', tmp_path / 'f.onnx', '--int8', tmp_path / 'i.onnx',
                             '--data-dir', tmp_path / 'data', '-j', 0)
    assert status == 0
    which = 'train;' if 'train' in splits else 'validation, on which accuracy is measured too;'
    assert f'calibrated on 2 images of the split {which}' in out
    assert ('no training images: ' in out) == (splits == ('val',))
