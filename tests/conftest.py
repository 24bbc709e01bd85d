"""One thread a worker: two workers share the machine, and small models are faster so. And a Hub on loopback."""

import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from hub import HUB, Hub  # before huggingface_hub, which reads its environment when it is imported
from huggingface_hub import constants
from timm_scripts import timm_scripts  # noqa: F401 - a fixture

import timm_asr  # noqa: F401 - registers the models

torch.set_num_threads(1)


# What depends on torch, timm, huggingface_hub and safetensors most, and needs no extra.
CORE = {'gates', 'asr', 'inference', 'models', 'checkpoints', 'freeze', 'export'}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the extras, the files of other folders cannot even be imported."""
    here = collection_path.parent == Path(__file__).parent and collection_path.is_dir()
    return True if here and collection_path.name not in CORE and config.option.markexpr == 'core' else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in CORE and not item.get_closest_marker('slow'):
            item.add_marker('core')


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub of this process, empty, as are token and cache; its client does not wait before it tries again."""
    HUB.reset()
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    return HUB
