"""metrics.json states figures of the network that is in the folder; the inference form has a row of its own."""

import pytest
import torch
from helpers import randomize, small

from timm_asr import fold_asr, reparameterize
from timm_asr.engine.forms import compare_forms
from timm_asr.models.counts import count_parameters


@pytest.mark.parametrize('name', ['repvgg_a0_asr_se', 'resnet56_acnet_asr_se', 'resnet20_se_asr_se', 'resnet20_asr_se',
                                  'resnet20_se', 'resnet20'])
def test_what_is_counted_is_what_is_written(name):
    model = randomize(small(name, dtype=torch.float32)).eval()
    facts = {'model': name, 'dataset': 'digits', 'epoch': 3, 'weights': 'raw'}
    batches = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])) for _ in range(2)]
    found, form = compare_forms(model, facts, batches, torch.device('cpu'), 'a checkpoint')
    folded, inference = fold_asr(small(name)), reparameterize(fold_asr(small(name)).eval())
    assert found['parameters'] == count_parameters(model)
    assert found['parameters_folded'] == count_parameters(folded)
    assert found['images'] == 8
    assert (found['epoch'], found['weights']) == (3, 'raw')
    assert found['logit_difference_relative'] < 1e-5
    merges = name not in ('resnet20_asr_se', 'resnet20')
    assert ('top1_inference' in found) == merges
    if merges:
        assert found['parameters_inference'] == count_parameters(inference)
        assert found['logit_difference_relative_inference'] < 1e-5
    if 'asr' not in name:
        assert found['logit_difference'] == 0
        assert count_parameters(form) == count_parameters(inference)
