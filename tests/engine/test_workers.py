"""Loading workers whose reader is gone say nothing; other errors of theirs are still told."""

import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

from timm_asr.engine.workers import GRACE, quiet_workers


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


class Slow(Dataset):
    """Reads one image for far longer than a worker that is told to end may take."""

    def __init__(self):
        self.reads = torch.zeros(()).share_memory_()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.reads.fill_(1)
        time.sleep(100)


def test_a_worker_told_to_end_gives_the_reader_a_moment_and_no_error():
    images = Slow()
    loader = DataLoader(images, num_workers=1, multiprocessing_context='fork')
    quiet_workers(loader)
    batches = iter(loader)
    worker, = batches._workers
    while not images.reads:
        time.sleep(0.01)
    worker.terminate()
    worker.join(0.5)
    assert worker.is_alive()
    worker.join(GRACE + 10)
    assert worker.exitcode == 0
