"""Loading workers whose reader is gone say nothing; other errors of theirs are still told."""

import sys

import torch
from torch.utils.data import DataLoader, Dataset

from timm_asr.engine.workers import quiet_workers


class Reporting(Dataset):
    """Calls the worker's hook, as the standard library's thread does that hands over tensors."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        for error in (BrokenPipeError('hung up'), ConnectionResetError('hung up'), EOFError('hung up'),
                      ValueError('a real error')):
            sys.excepthook(type(error), error, None)
        sys.stderr.flush()
        return torch.zeros(1)


def test_only_cut_connections_are_kept_quiet(capfd):
    loader = DataLoader(Reporting(), num_workers=1, worker_init_fn=lambda worker: print(f'worker {worker}', flush=True),
                        multiprocessing_context='fork')
    quiet_workers(loader)
    batches = list(loader)
    out, err = capfd.readouterr()
    assert len(batches) == 1
    assert 'worker 0' in out  # what the loader itself does to start a worker
    assert 'hung up' not in err
    assert 'a real error' in err


def test_the_hook_stays_in_the_workers():
    hook = sys.excepthook
    quiet_workers(DataLoader(Reporting()))
    assert sys.excepthook is hook
