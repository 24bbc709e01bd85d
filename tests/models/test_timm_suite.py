"""timm's own model tests, unchanged, on names of ours; they come with its source distribution, which pip downloads."""

import os
import subprocess
import sys
import tarfile

import pytest
import timm

# One of every kind of class: they differ in what they inherit from timm and in what stands in their blocks.
SAMPLE = [
    'resnet20_asr_se', 'resnet83_srm', 'resnet20_sge', 'resnet50_eca_asr_eca', 'resnet18_cbam', 'vit_tiny_asr_srm',
    'resnet20_spe', 'resnet20_ras', 'resnet20_dia_se', 'resnet18_dia_lstm', 'repvgg_a0_cifar_se_asr_se',
    'resnet56_acnet_asr_se', 'mobilenetv1_100_cifar_asr_ie', 'shufflenetv2_100_cifar_srm_asr_srm',
    'vgg19_cifar_se_asr_se']
# timm's list of names it expects forward_intermediates of is by module, and its weights come from the hub.
DESELECTED = 'pretrained or model_inference'


@pytest.fixture(scope='module')
def timm_source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('timm')
    download = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', ':all:',
         f'timm=={timm.__version__}', '-d', str(folder)], capture_output=True, text=True)
    archives = list(folder.glob('timm-*.tar.gz'))
    if not archives:
        last = (download.stderr.strip().splitlines() or ['no output'])[-1]
        pytest.skip(f"timm {timm.__version__}'s source distribution could not be downloaded: {last}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter='data')
    return folder / f'timm-{timm.__version__}'


@pytest.mark.slow
def test_timms_own_model_tests(timm_source):
    names = ' or '.join(f'-{name}]' for name in SAMPLE)  # as pytest ends the ids of its tests
    out = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', '-c', os.devnull,
         '--rootdir', str(timm_source), str(timm_source / 'tests' / 'test_models.py'),
         '-k', f'({names}) and not ({DESELECTED})'],
        # timm's tests import the backend that this variable names: the hook by which our models get registered
        env={**os.environ, 'TORCH_BACKEND': 'timm_asr'}, capture_output=True, text=True)
    summary = out.stdout.strip().splitlines()[-1]
    assert out.returncode == 0, out.stdout[-4000:]
    assert int(summary.split(' passed')[0].split()[-1]) >= 7 * len(SAMPLE), summary
