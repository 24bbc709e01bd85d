#!/usr/bin/env python3
"""Draw a small data set in COCO's format and layout: handwritten digits on noisy canvases, boxes and polygons.

    python examples/draw_coco.py drawn --train 400 --val 80
    timm-asr detect --backbone resnet18_asr_se --data-dir drawn ...

The digits of the two splits are different images. Folders and files are named as COCO's are: ``train2017/``,
``val2017/`` and ``annotations/instances_{train,val}2017.json``.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from timm_asr.data import Digits


def draw_coco(folder: Path, train: int = 400, val: int = 80, side: int = 96, classes: int = 3, seed: int = 0) -> None:
    """Write both splits.

    Args:
        folder: Where they go.
        train: Images to train on.
        val: Images held out.
        side: Height and width of an image, in pixels.
        classes: Digits 0 to ``classes`` - 1 are drawn, as the categories 1 to ``classes``.
        seed: Of places, sizes and noise.
    """
    (folder / 'annotations').mkdir(parents=True, exist_ok=True)
    for split, source, count in (('train2017', 'train', train), ('val2017', 'validation', val)):
        content = _draw(folder / split, Digits(source), count, side, classes, np.random.default_rng((seed, count)))
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _draw(folder: Path, digits: Digits, count: int, side: int, classes: int, rng: np.random.Generator) -> dict:
    folder.mkdir(exist_ok=True)
    wanted = [digits[i] for i in range(len(digits)) if digits[i][1] < classes]
    images, annotations = [], []
    for number in range(1, count + 1):
        canvas = Image.fromarray(rng.integers(90, 130, (side, side, 3), dtype=np.uint8))
        for half in range(2):  # one left, one right: they never cover each other
            digit, label = wanted[rng.integers(len(wanted))]
            size = int(rng.integers(side // 4, side // 2))
            x = half * side // 2 + int(rng.integers(0, side // 2 - size + 1))
            y = int(rng.integers(0, side - size + 1))
            canvas.paste(digit.convert('RGB').resize((size, size)), (x, y))
            corners = [x, y, x + size, y, x + size, y + size, x, y + size]
            annotations.append({
                'id': len(annotations) + 1, 'image_id': number, 'category_id': label + 1, 'iscrowd': 0,
                'bbox': [x, y, size, size], 'area': size * size, 'segmentation': [corners]})
        name = f'{number:06}.png'
        canvas.save(folder / name)
        images.append({'id': number, 'file_name': name, 'height': side, 'width': side})
    return {'images': images, 'annotations': annotations,
            'categories': [{'id': n + 1, 'name': str(n)} for n in range(classes)]}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--train', type=int, default=400, help='images to train on')
    parser.add_argument('--val', type=int, default=80, help='images held out')
    parser.add_argument('--side', type=int, default=96, help='height and width in pixels')
    parser.add_argument('--classes', type=int, default=3, help='how many of the digits')
    parser.add_argument('--seed', type=int, default=0)
    options = vars(parser.parse_args())
    draw_coco(**options)
    print(f'Wrote {options["folder"]}')
