"""float32 with all its bits, where a result is kept or compared."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOCK = threading.Lock()
_inside: list[list[Any]] = []  #: what the switches were before, once for each thread that is inside


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, products and convolutions of float32 keep 24 bits of each factor; CUDA's TF32 keeps 11.

    The switches are those of the process: the last thread to leave turns them back.
    """
    backends = torch.backends
    parts = [(backends.cuda.matmul, 'allow_tf32', False), (backends.cudnn, 'allow_tf32', False)]
    if hasattr(backends.cuda.matmul, 'fp32_precision'):  # PyTorch 2.9; it does not let the two ways be mixed
        parts = [(part, 'fp32_precision', 'ieee')  # type: ignore[misc]
                 for part in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]  # type: ignore[attr-defined]
    with _LOCK:
        _inside.append(_inside[0] if _inside else [getattr(part, name) for part, name, _ in parts])
        for part, name, value in parts:
            setattr(part, name, value)
    try:
        yield
    finally:
        with _LOCK:
            before = _inside.pop()
            if not _inside:
                for (part, name, _), value in zip(parts, before, strict=True):
                    setattr(part, name, value)
