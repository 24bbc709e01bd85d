"""The device is found, not assumed."""

import torch
from timm.utils import is_distributed_env, world_info_from_env

from ..errors import BadInput


def find_device(name: str | None = None) -> torch.device:
    """The device that the user asked for (``cuda``, ``cuda:1``, ``cpu``, ...); None or ``auto``: the best there is.
    ``BadInput``: the name is not a device, or there is none of that type here.
    """
    there = {name: getattr(torch, name, None) for name in ('cuda', 'xpu', 'npu', 'hpu')} | {'mps': torch.backends.mps}
    # The fastest first.
    available = [*(name for name, backend in there.items() if getattr(backend, 'is_available', bool)()), 'cpu']
    if not name or name == 'auto':
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f'--device {name}: not a device; available here: {", ".join(available)}') from None
    if device.type not in available:
        raise BadInput(f'--device {name}: there is none on this machine; available here: {", ".join(available)}')
    if device.type == 'cuda' and device.index is not None and device.index >= torch.cuda.device_count():
        raise BadInput(f'--device {name}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}')
    return device


def processes() -> tuple[int, int]:
    """The index of this process and their number, as torchrun or SLURM says: (0, 1) for one alone."""
    try:
        return world_info_from_env()[1:] if is_distributed_env() else (0, 1)
    except ValueError as error:
        raise BadInput(f'WORLD_SIZE, RANK or a variable of SLURM is no number ({error})') from None


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on the CPU."""
    backend = getattr(torch, device.type, None)
    if device.type != 'cpu' and hasattr(backend, 'synchronize'):
        backend.synchronize(*([] if device.type == 'mps' else [device]))  # by itself it waits for the current one
