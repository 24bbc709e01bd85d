"""timm's own model tests, unchanged, on names of ours; they come with its source distribution, which pip downloads."""

import os
import subprocess
import sys
import tarfile

import pytest
import timm

# One of every kind of class: they differ in what they inherit from timm and in what stands in their blocks.
SAMPLE = [
    'resnet20_asr_se', 'resnet83_srm', 'resnet20_sge', 'resnet18_eca_asr_eca', 'resnet20_cbam', 'vit_tiny_asr_srm',
    'resnet20_spe', 'resnet20_ras', 'resnet18_dia_lstm', 'repvgg_a0_cifar_se_asr_se', 'resnet56_acnet_asr_se',
    'mobilenetv1_100_cifar_asr_ie', 'shufflenetv2_100_cifar_srm_asr_srm', 'vgg19_cifar_se_asr_se']
# The functions are called by themselves, since pytest would collect 25,000 cases to run a hundred.
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import test_models as timms

for name in sys.argv[2:]:
    usual = not name.startswith('vit')  # as timm has it
    (timms.test_model_default_cfgs if usual else timms.test_model_default_cfgs_non_std)(name, 1, 'meta')
    checks = {'forward': 1, 'backward': 2, 'forward_torchscript': 1, 'forward_intermediates': 1, 'forward_fx': 1,
              'backward_fx': 2, 'forward_fx_torchscript': 1, **({'forward_features': 1} if usual else {})}
    for check, batch in checks.items():
        print(name, check, flush=True)
        getattr(timms, f'test_model_{check}')(name, batch)
"""


@pytest.mark.slow
def test_timms_own_model_tests(tmp_path):
    download = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', ':all:',
         f'timm=={timm.__version__}', '-d', str(tmp_path)], capture_output=True, text=True)
    archives = list(tmp_path.glob('timm-*.tar.gz'))
    if not archives:
        last = (download.stderr.strip().splitlines() or ['no output'])[-1]
        pytest.skip(f"timm {timm.__version__}'s source distribution could not be downloaded: {last}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path, filter='data')
    out = subprocess.run(
        [sys.executable, '-c', RUN, str(tmp_path / f'timm-{timm.__version__}' / 'tests'), *SAMPLE],
        # timm's tests import the backend that this variable names: the hook by which our models get registered
        env={**os.environ, 'TORCH_BACKEND': 'timm_asr'}, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout[-200:] + out.stderr[-4000:]
