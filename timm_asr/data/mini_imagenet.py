"""The DIA paper's mini-ImageNet (Tables 5 and 7), out of an ImageNet folder."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from timm.data import get_img_extensions
from tqdm import tqdm

TRAIN, VAL = 500, 100  # images of a class
#: The usual 100 classes of mini-ImageNet.
CLASSES = Path(__file__).with_suffix('.txt').read_text(encoding='utf-8').split()


def make_mini_imagenet(imagenet: str | Path, output: str | Path, classes: Sequence[str] = CLASSES, seed: int = 0,
                       copy: bool = False, progress: bool = True) -> None:
    """Write ``train/`` and ``val/`` of 500 and 100 images a class, links to the images of a folder.

    A seed, class and file name decide whether an image is drawn, so that everybody gets the same images.

    Args:
        imagenet: Folder with a folder of training images for each class; or the one above it, with ``train/``.
        output: Folder to write; it must be empty, or not there yet.
        classes: Names of the classes' folders.
        seed: Which images are drawn.
        copy: Write copies instead of links.
        progress: Show a progress bar.

    Raises:
        ValueError: A class is named twice, is not there or has too few images, or the output is not empty. Nothing is
            written then.
    """
    source, output, suffixes = Path(imagenet).resolve(), Path(output).resolve(), get_img_extensions(as_set=True)
    source = source / 'train' if (source / 'train').is_dir() else source
    if absent := [name for name in classes if not (source / name).is_dir()]:
        raise ValueError(f'{source} has no folder for {len(absent)} of {len(classes)} classes: {", ".join(absent[:8])}')
    if len(set(classes)) < len(classes) or not classes:
        raise ValueError('the list of classes is empty, or names a class twice')
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f'{output} is there already, and is no empty folder')
    drawn = {}
    for name in classes:
        images = [path for path in (source / name).iterdir() if path.suffix.lower() in suffixes]
        if len(images) < TRAIN + VAL:
            raise ValueError(f'{source / name} has {len(images)} images, fewer than {TRAIN + VAL}')
        images.sort(key=lambda path: hashlib.sha256(f'{seed}/{path.parent.name}/{path.name}'.encode()).digest())
        drawn[name] = {'train': images[:TRAIN], 'val': images[TRAIN:TRAIN + VAL]}
    part = output.with_name(f'.{output.name}.part')  # half a set has another name
    shutil.rmtree(part, ignore_errors=True)
    with tqdm(total=len(classes) * (TRAIN + VAL), unit='image', disable=not progress) as bar:
        for name, splits in drawn.items():
            for split, images in splits.items():
                folder = part / split / name
                folder.mkdir(parents=True)
                for path in images:
                    shutil.copyfile(path, folder / path.name) if copy else (folder / path.name).symlink_to(path)
                    bar.update()
    part.replace(output)
