"""Splits that are not there: timm takes the whole folder for a missing split, and any unknown name for a test set."""

from pathlib import Path

from .arrays import HELD_OUT_SPLITS, TRAIN_SPLITS, is_training_split

_KNOWN = TRAIN_SPLITS + HELD_OUT_SPLITS
_FOLDERS = ('', 'folder', 'image_folder', 'torch/folder', 'torch/image_folder')
#: Data sets of torchvision whose split is a choice of two, which timm makes by "is it one of train's names?".
_TWO = ('torch/cifar10', 'torch/cifar100', 'torch/mnist', 'torch/kmnist', 'torch/fashion_mnist', 'torch/stl10')


def check_split(dataset: str, root: str | None, split: str) -> None:
    """See that a split exists, under its own name or one that timm takes for the same.

    A folder that has no sub-folder of any split's name is one set, whatever the split is called (``/imagenet/val``).

    Raises:
        ValueError: It does not, and which splits do.
    """
    name = split.split('[')[0]
    if dataset.lower() in _TWO:
        is_training_split(name, dataset)
        return
    if dataset.lower() not in _FOLDERS or not root or not name or not Path(root).is_dir():
        return
    same = next((names for names in (TRAIN_SPLITS, HELD_OUT_SPLITS[:-1]) if name in names), (name,))
    folders = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
    splits = [folder for folder in folders if folder in _KNOWN]
    if not set(same) & set(folders) and (splits or name not in _KNOWN):
        raise ValueError(f'there is no such split; its folders are {", ".join((splits or folders)[:8]) or "none"}')
