"""One thread a worker: two workers share the machine, and small models are faster so."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from hub_client import _started_hub, hub, hub_client, stock_client  # noqa: F401 - fixtures
from timm_scripts import timm_scripts  # noqa: F401

import timm_asr  # noqa: F401 - registers the models

torch.set_num_threads(1)


# What depends on torch, timm, huggingface_hub and safetensors most, and needs no extra.
CORE = {'gates', 'asr', 'inference', 'models', 'checkpoints', 'freeze', 'export'}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in CORE and not item.get_closest_marker('slow'):
            item.add_marker('core')


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
