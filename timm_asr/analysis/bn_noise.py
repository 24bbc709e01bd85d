"""Noise in every BatchNorm: BN(x) = [(x - mu) / sigma * N_a + N_b] * gamma + beta (ASR paper, section 6, Table 9)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Noise:
    """A number, or one drawn from N(mean, std^2) for each channel in each forward pass."""

    mean: float
    std: float = 0.0

    def draw(self, like: torch.Tensor) -> torch.Tensor | float:
        """The number, or (C,) of them; from PyTorch's own generator, which checkpoints hold."""
        return self.mean + self.std * torch.randn_like(like) if self.std else self.mean


def parse_noise(text: str) -> tuple[Noise, Noise]:
    """N_a and N_b as the command line writes them.

    ::

        parse_noise('0.8,0.5')        # the constants 0.8 and 0.5
        parse_noise('N1_0.1,N0_0.1')  # N_a drawn from N(1, 0.1^2), N_b from N(0, 0.1^2)

    Raises:
        ValueError: It is written in another way.
    """
    try:
        a, b = (_parse_one(part.strip()) for part in text.split(','))
    except ValueError:
        raise ValueError(f"'{text}' is no noise: write two numbers as in 0.8,0.5, or with mean and deviation as in "
                         'N1_0.1,N0_0.1') from None
    return a, b


def _parse_one(text: str) -> Noise:
    drawn = text.startswith('N')
    numbers = [float(part) for part in (text[1:].split('_') if drawn else [text])]
    if len(numbers) != 1 + drawn or not all(map(math.isfinite, numbers)) or (drawn and numbers[1] < 0):
        raise ValueError
    return Noise(*numbers)


class bn_noise(TorchFunctionMode):  # noqa: N801 - called as a function is, after `with`
    """While entered, every BatchNorm of this thread computes [(x - mu) / sigma * N_a + N_b] * gamma + beta.

    ::

        with bn_noise(0.8, 0.5):
            model(images)

    That is a BatchNorm with the weight N_a * gamma and the bias N_b * gamma + beta. It is put in place while the
    BatchNorm runs; nothing is written to the model, so afterwards it is what it was, and nothing of the noise is in
    weights that are saved or folded. Running statistics are those of x, with or without noise. ASR scales gamma and
    beta, and folding multiplies the same factor into them: the folded network is the same function under noise, too.

    Not affected are programs (TorchScript, torch.export, compiled ones) and PyTorch's SyncBatchNorm in training.

    Args:
        a: N_a, a number or a :class:`Noise`.
        b: N_b, the same.
    """

    def __init__(self, a: float | Noise, b: float | Noise) -> None:
        super().__init__()
        self.a, self.b = (n if isinstance(n, Noise) else Noise(n) for n in (a, b))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._batch_norm(*args, **(kwargs or {}))

    def _batch_norm(
            self, x: torch.Tensor, running_mean: torch.Tensor | None, running_var: torch.Tensor | None,
            weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, *rest: Any, **kwargs: Any,
    ) -> torch.Tensor:
        gamma = x.new_ones(x.shape[1]) if weight is None else weight
        added = self.b.draw(gamma) * gamma
        return F.batch_norm(x, running_mean, running_var, self.a.draw(gamma) * gamma,
                            added if bias is None else added + bias, *rest, **kwargs)
