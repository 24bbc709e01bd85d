"""Ctrl-C and SIGTERM wait for the end of a batch; asking twice does not wait."""

import os
import signal
import sys
import threading
import time
from collections import deque

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from timm_asr.engine.interrupt import GRACE, Stoppable, deferred_interrupts, quiet_workers, stoppable


def send(number):
    os.kill(os.getpid(), number)


def run(batches, step):
    with deferred_interrupts():
        for batch in stoppable(batches):
            step(batch)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_step_stops_before_the_next(number, capfd):
    done = []

    def step(batch):
        if batch == 2:
            send(number)
        done.append(batch)  # the step goes on to its end

    with pytest.raises(KeyboardInterrupt):
        run(range(5), step)
    assert done == [0, 1, 2]
    assert 'Stopping after this step' in capfd.readouterr().err


def test_a_stoppable_loader_stops_whoever_reads_it():
    loader = Stoppable(DataLoader(list(range(5)), batch_size=1))
    assert (len(loader), loader.batch_size, len(list(loader))) == (5, 1, 5)
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        deque(send(signal.SIGINT) for _ in loader)


def test_the_second_signal_stops_at_once():
    reached = []

    def step(batch):
        for _ in range(2):
            send(signal.SIGINT)
            reached.append(batch)

    with pytest.raises(KeyboardInterrupt):
        run([1], step)
    assert reached == [1]


@pytest.mark.parametrize(('signalled', 'kind'), [(True, KeyboardInterrupt), (False, RuntimeError)])
def test_what_a_signal_breaks_elsewhere_counts_as_the_signal(signalled, kind):
    def step(batch):
        if signalled:
            send(signal.SIGTERM)
        raise RuntimeError('a loading worker was killed')

    with pytest.raises(kind):
        run([1], step)


def test_handlers_and_request_end_with_the_block():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # a signal in the last step is not forgotten
        run([1], lambda batch: send(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert list(stoppable([1, 2])) == [1, 2]


def test_other_threads_may_use_it():
    found = []
    thread = threading.Thread(target=run, args=([1, 2], found.append))
    thread.start()
    thread.join()
    assert found == [1, 2]


class Reporting(Dataset):
    """Calls the worker's hook, as the standard library's thread does that hands over tensors; then reads for long."""

    def __init__(self):
        self.reads = torch.zeros(()).share_memory_()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        for error in (BrokenPipeError('hung up'), EOFError('hung up'), ValueError('a real error')):
            sys.excepthook(type(error), error, None)
        self.reads.fill_(1)
        time.sleep(100)


def test_a_worker_told_to_end_gives_the_reader_a_moment_and_says_nothing_of_it(capfd):
    hook, images = sys.excepthook, Reporting()
    loader = DataLoader(images, num_workers=1, worker_init_fn=lambda worker: print(f'worker {worker}', flush=True),
                        multiprocessing_context='fork')
    quiet_workers(loader)
    batches = iter(loader)
    worker, = batches._workers
    while not images.reads:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGINT)
    worker.terminate()
    worker.join(0.5)
    assert worker.is_alive()
    worker.join(GRACE + 10)
    assert worker.exitcode == 0
    out, err = capfd.readouterr()
    assert 'worker 0' in out  # what the loader itself does to start a worker
    assert 'hung up' not in err
    assert 'a real error' in err
    assert sys.excepthook is hook
