"""``timm.data.create_dataset``, and three more names: ``digits``, ``npz:FILE`` and ``torch/stl10``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import timm.data
from filelock import FileLock
from torch.utils.data import Dataset
from torchvision.datasets import STL10

from .arrays import HELD_OUT_SPLITS, TRAIN_SPLITS, Digits, Npz, is_training_split

_KNOWN = TRAIN_SPLITS + HELD_OUT_SPLITS
_FOLDERS = ('', 'folder', 'image_folder', 'torch/folder', 'torch/image_folder')
#: Data sets of torchvision whose split is a choice of two, which timm makes by "is it one of train's names?".
_TWO = tuple(f'torch/{name}' for name in (
    'cifar10', 'cifar100', 'mnist', 'qmnist', 'kmnist', 'fashion_mnist', 'stl10'))


def _check_split(dataset: str, root: str | None, split: str) -> None:
    """See that a split exists, under its own name or one that timm takes for the same; ``ValueError`` names those that
    do. A folder without a sub-folder of any split's name is one set, whatever the split is called (``/imagenet/val``).
    """
    if dataset.lower() in _TWO:
        is_training_split(split, dataset)  # no part of one either: timm would take the other split
        return
    if dataset.lower() not in _FOLDERS or not root or not Path(root).is_dir():
        return
    if '[' in split:
        raise ValueError('a folder has whole splits only')
    same = next((names for names in (TRAIN_SPLITS, HELD_OUT_SPLITS[:-1]) if split in names), (split,))
    folders = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
    splits = [folder for folder in folders if folder in _KNOWN]
    if not set(same) & set(folders) and (splits or split not in ('', *_KNOWN)):
        raise ValueError(f'there is no such split; its folders are {", ".join((splits or folders)[:8]) or "none"}')


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """Of several processes one downloads, and the others find what it has."""
    with ExitStack() as stack:
        with suppress(OSError):  # where nothing can be written, what is there must do
            Path(root).mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(Path(root) / '.download.lock'))
        yield


def create_dataset(name: str, root: str | None = None, split: str = 'validation', **kwargs: Any) -> Any:
    """A data set by name.

    Args:
        name: ``digits`` (the embedded set), ``npz:FILE`` (arrays of images and labels, see ``Npz``), ``torch/stl10``
            (torchvision's); all others are timm's: ``''`` (folder or tar), ``torch/cifar10``, ``hfds/...``,
            ``tfds/...``, ``wds/...``
        root: Folder or tar file of the data; not used by ``digits`` and ``npz:``.
        split: Name of the split.
        **kwargs: As for ``timm.data.create_dataset``.

    Raises:
        ValueError: There is no such split.
    """
    _check_split(name, root, split)
    mode = kwargs.get('input_img_mode') or 'RGB'
    if name == 'digits':
        return Digits(split, input_img_mode=mode)
    if name.startswith('npz:'):
        return Npz(name.removeprefix('npz:'), split, mode)
    with _alone(root) if kwargs.get('download') and root else nullcontext():
        if name.lower() == 'torch/stl10':
            dataset: Any = STL10(root, split='train' if split in TRAIN_SPLITS else 'test',
                                 download=bool(kwargs.get('download')))
        else:
            dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    return InMode(dataset, mode) if name.lower().startswith('torch/') else dataset


class InMode(Dataset):
    """A data set of torchvision whose images come in one PIL mode, which timm asks of its own readers alone."""

    transform: Callable[[Any], Any] | None = None

    def __init__(self, dataset: Any, mode: str) -> None:
        self.dataset, self.mode = dataset, mode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.dataset[index]
        image = image.convert(self.mode)
        return image if self.transform is None else self.transform(image), label

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)
