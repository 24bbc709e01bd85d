"""The page on adding a backbone, run as a module of one's own, and what its names can do."""

import subprocess
import sys

from pages import parts

CHECKS = """
import copy, pickle
import tinynet
import timm, torch
import timm_asr
from timm.models import list_models
from timm_asr.models.registry import variant_of

names = list_models(module='tinynet')
gates = ('se', 'ie', 'srm', 'eca', 'spa')
assert sorted(names) == sorted(
    ['tinynet', *(f'tinynet{end}' for g in gates for end in (f'_{g}', f'_asr_{g}', f'_{g}_asr_{g}'))]), names
x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
for name in names:
    model = timm.create_model(name, num_classes=5, dtype=torch.float64).train()
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), name
    sites = [m for m in model.modules() if isinstance(m, timm_asr.asr.wrapper.ASR)]
    assert len(sites) == (2 if variant_of(name).asr else 0)
    model.eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    expected = model(x)
    folded = timm_asr.fold_asr(copy.deepcopy(model))
    plain = timm.create_model(timm_asr.plain_architecture(name), num_classes=5, dtype=torch.float64).eval()
    plain.load_state_dict(folded.state_dict())
    for other in (folded, plain, copy.deepcopy(model).reparameterize(fold_bn=True), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), expected, rtol=1e-12, atol=1e-12)
    features = timm.create_model(name, features_only=True, dtype=torch.float64)(x)
    assert [f.shape[-1] for f in features] == [8, 8]
half = timm.create_model('tinynet', last_norm_init=0.5)
assert all((block.norm2.weight == 0.5).all() for block in half.blocks)
"""


def test_the_page_makes_a_backbone(tmp_path):
    code = [part.text for part in parts('docs/add_a_backbone.md') if part.kind == 'python']
    assert len(code) == 5
    (tmp_path / 'tinynet.py').write_text('\n'.join(code[:-1]))
    run = subprocess.run([sys.executable, '-c', CHECKS], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
