"""A small data set in COCO's format: handwritten digits on grey canvases."""

import json

import numpy as np
from PIL import Image

from timm_asr.data import Digits


def make_coco(folder, count=6, side=64, scale=3, seed=0):
    """Write ``count`` images with two digits each, their boxes and polygons; the last image has none.

    Returns:
        Folder of the images, file of the annotations.
    """
    rng = np.random.default_rng(seed)
    digits = Digits('train')
    images, annotations = [], []
    (folder / 'images').mkdir(parents=True)
    for number in range(1, count + 1):
        width = side + 16 * (number % 2)
        canvas = Image.fromarray(rng.integers(90, 120, (side, width, 3), dtype=np.uint8))
        images.append({'id': number * 10, 'file_name': f'{number}.png', 'height': side, 'width': width})
        for half in range(2 if number < count else 0):
            digit, label = digits[int(rng.integers(len(digits)))]
            digit = digit.convert('RGB').resize((8 * scale, 8 * scale))
            x = int(half * side // 2 + rng.integers(0, side // 2 - 8 * scale + 1))
            y = int(rng.integers(0, side - 8 * scale + 1))
            canvas.paste(digit, (x, y))
            w = h = 8 * scale
            annotations.append({
                'id': len(annotations) + 1, 'image_id': number * 10, 'category_id': label % 3 + 1, 'iscrowd': 0,
                'bbox': [x, y, w, h], 'area': w * h, 'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]]})
        canvas.save(folder / 'images' / f'{number}.png')
    content = {'images': images, 'annotations': annotations,
               'categories': [{'id': n, 'name': f'rest {n - 1}'} for n in (1, 2, 3)]}
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder / 'images', folder / 'annotations.json'
