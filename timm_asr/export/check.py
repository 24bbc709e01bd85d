"""Before a folder is said to be written, a fresh process loads it as its users will."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save
from timm.models import is_model, model_entrypoint

_SCRIPT = Path(__file__).with_name('reload.py')


def needs_of(architecture: str) -> list[str]:
    """Packages that register an architecture and must be imported first; none for those of timm.

    Raises:
        ValueError: It is registered by something that nobody else has.
    """
    if not is_model(architecture):
        raise ValueError(f"timm knows no architecture '{architecture}', so nobody could load these weights by name.")
    home = model_entrypoint(architecture).__module__.partition('.')[0]
    if home not in ('timm', 'timm_asr'):
        raise ValueError(
            f"The architecture '{architecture}' is registered by '{home}' and not by timm or timm_asr, so nobody else "
            'could load these weights by name.')
    return [] if home == 'timm' else [home]


class FreshProcess:
    """A Python that has imported nothing of ours; it starts at once, and so loads timm while this one works.

    Use it as a context.

    Raises:
        ValueError: It cannot be started, or a folder does not load to the same function.
    """

    def __init__(self) -> None:
        # The same packages as here, whatever put them on the path; nothing from the network, nothing on a GPU.
        path = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
        env = {**os.environ, 'PYTHONPATH': path, 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': ''}
        self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 - a pipe that nobody reads could fill up
        try:
            # -P: the folder of the script would put its neighbours before packages of the same names.
            self._process = subprocess.Popen(
                [sys.executable, '-P', str(_SCRIPT)], env=env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        except OSError as error:
            raise ValueError(f'No fresh Python could be started to check what is written ({error.strerror}); '
                             'check=False writes without checking.') from None

    @property
    def ended(self) -> bool:
        """Whether it answers no more."""
        return self._process.poll() is not None

    def __enter__(self) -> 'FreshProcess':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def check(
            self,
            folder: Path,
            needs: Sequence[str],
            images: torch.Tensor,
            logits: torch.Tensor,
            allowed: float,
            model: Mapping[str, Any],
            data: Mapping[str, Any],
            label_names: Sequence[str] | None = None,
            trainable: bool = False,
    ) -> float:
        """Load a folder there and compare.

        Args:
            folder: What was written.
            needs: Packages to import before; with none, this package is kept out of reach.
            images: (B, C, H, W), float32.
            logits: (B, N), what the model must make of them.
            allowed: Largest difference over the largest logit.
            model: Attributes that the loaded model must have (``num_classes``, ...).
            data: Entries of timm's data configuration that it must resolve to.
            label_names: The names of its classes, or None.
            trainable: Load it by this package as the trainable form.

        Returns:
            The largest difference over the largest logit.
        """
        with tempfile.TemporaryDirectory() as aside:
            case = Path(aside) / 'case.safetensors'
            case.write_bytes(save({'images': images.contiguous(), 'logits': logits.contiguous()}))
            task = {'folder': str(folder.absolute()), 'needs': list(needs), 'case': str(case), 'allowed': allowed,
                    'model': dict(model), 'data': dict(data), 'label_names': list(label_names) if label_names else None,
                    'trainable': trainable}
            answer = self._ask(task)
        if 'error' in answer:
            by = ' and '.join(['timm', *needs]) if needs else 'timm alone'
            raise ValueError(f'What was written does not load back by {by} ({answer["error"]}); it is not kept.')
        return answer['relative']

    def _ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task) + '\n')
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            return json.loads(line)
        except (OSError, ValueError):
            self._process.kill()
            self._process.communicate()
            self._errors.seek(0)
            reason = self._errors.read().strip().splitlines()
            raise ValueError('The fresh Python that was to check what is written ended before it answered '
                             f'({reason[-1] if reason else "without a word"}).') from None
