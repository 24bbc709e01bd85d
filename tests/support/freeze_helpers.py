"""Gates that are constant by construction, and networks frozen by hand."""

import copy

import timm
import torch
from helpers import randomize

from timm_asr.analysis.gates import measure_gates
from timm_asr.freeze.attention import candidates
from timm_asr.gates.gate import ChannelGate

CIFAR = {'layers': (2, 1, 1), 'channels': (8, 8, 16), 'num_classes': 5}
IMAGENET = {'layers': (2, 1, 1, 1), 'channels': (16, 16, 32, 32), 'num_classes': 5}
FIVE = {'num_classes': 5}


def build(name, **kwargs):
    return randomize(timm.create_model(name, dtype=torch.float64, **kwargs)).eval()


def gates_of(model, x):
    return list(measure_gates(model, iter([x]), candidates(model)))


@torch.no_grad()
def make_constant(model, x):
    """Zero every matrix inside the gates, so that only their random biases speak."""
    names = gates_of(model, x)
    for name in names:
        gate = model.get_submodule(name)
        for parameter in gate.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        if isinstance(gate, ChannelGate):  # IE, SPE and RAS multiply channel by channel
            for key, parameter in gate.named_parameters(recurse=False):
                if 'weight' in key:
                    parameter.zero_()
    return names


def logits(model, x):
    with torch.no_grad():
        return model(x)


def loader(x, batch=4):
    labels = torch.arange(len(x)) % 5
    return list(zip(x.split(batch), labels.split(batch), strict=True))


def literally_frozen(model, means):
    """The model with each gate's forward replaced by a multiplication, written down independently."""
    model = copy.deepcopy(model)
    for name, mean in means.items():
        model.get_submodule(name).forward = lambda x, v=mean: x * v.view(1, -1, 1, 1)
    return model
