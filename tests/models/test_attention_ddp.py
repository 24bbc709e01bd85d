"""Two processes train recurrent and shared attention as one does: no unused parameter, the same gradients."""

import copy
import socket

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import randomize, relative_error
from torch.nn.parallel import DistributedDataParallel

import timm_asr

NAMES = ['resnet20_dia_lstm', 'resnet20_dia_lstm_light', 'resnet83_dia_srm', 'resnet20_spe', 'resnet20_ras_spa']


def model_and_images(name):
    """The same in every process; in eval mode, since BatchNorm over half a batch is not that over the whole."""
    torch.manual_seed(5)
    model = randomize(timm.create_model(name, layers=(2, 1, 2), channels=(8, 8, 8), dtype=torch.float64)).eval()
    return model, torch.randn(4, 3, 16, 16, dtype=torch.float64)


def loss(model, x):
    return model(x).square().mean() + timm_asr.auxiliary_loss(model)


def worker(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    grads = {}
    for name in NAMES:
        model, x = model_and_images(name)
        ddp = DistributedDataParallel(model, find_unused_parameters=False)
        for _ in range(2):  # DDP reports an unused parameter at the second step
            ddp.zero_grad()
            loss(ddp, x.chunk(2)[rank]).backward()
        grads[name] = [p.grad for p in model.parameters()]
    if rank == 0:
        torch.save(grads, f'{folder}/grads.pt')
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.start_processes(worker, (port, str(tmp_path)), nprocs=2, start_method='spawn')
    grads = torch.load(tmp_path / 'grads.pt', weights_only=True)
    for name in NAMES:
        model, x = model_and_images(name)
        loss(model, x).backward()
        for (key, p), g in zip(model.named_parameters(), grads[name], strict=True):
            assert (p.grad - g).abs().max() <= 1e-10 * max(p.grad.abs().max().item(), 1e-3), (name, key)


@pytest.mark.parametrize('name', NAMES)
def test_synchronised_norms(name):
    """Every BatchNorm is converted, those inside gates and blocks' own too, and the function stays."""
    model, x = model_and_images(name)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    norms = [m for m in converted.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(type(m) is torch.nn.SyncBatchNorm for m in norms)
    assert relative_error(model(x), converted(x)) < 1e-12
