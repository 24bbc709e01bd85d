"""The example of docs/freeze.md runs as it stands."""

import subprocess
import sys

import pytest
from test_docs import ROOT, blocks


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    (code,) = blocks('docs/freeze.md', 'python')
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page = (ROOT / 'docs' / 'freeze.md').read_text()
    shown = page.partition('It prints')[2].split('```')[1].strip().splitlines()
    printed = run.stdout.splitlines()
    assert len(printed) == len(shown)
    # The figures depend on the machine's arithmetic; names and what became of each gate mostly do not.
    assert [line.split()[:3] for line in printed[:11]] == [line.split()[:3] for line in shown[:11]]
    assert (tmp_path / 'gates.png').stat().st_size > 10_000
