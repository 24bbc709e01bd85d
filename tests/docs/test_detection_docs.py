"""The examples of docs/downstream.md run as they stand."""

import re
import subprocess
import sys

import pytest
from test_docs import blocks


@pytest.mark.slow
def test_the_examples_run(tmp_path):
    pytest.importorskip('pycocotools', reason='the extra `detection` is not installed')
    pytest.importorskip('segmentation_models_pytorch', reason='the extra `segmentation` is not installed')
    names, detection, segmentation = blocks('docs/downstream.md', 'python')
    run = subprocess.run([sys.executable, '-c', detection], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    figures = re.findall(r'(bbox|segm): AP50 ([\d.]+) with attention, ([\d.]+) without', run.stdout)
    assert [kind for kind, _, _ in figures] == ['bbox', 'segm']
    assert all(with_attention == without for _, with_attention, without in figures)
    run = subprocess.run([sys.executable, '-c', names + segmentation], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
