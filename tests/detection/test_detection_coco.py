"""A small set in COCO's format, and what detectors are worth on it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from timm_asr.detection import CocoSet, collate, evaluate_coco

COCO = pytest.importorskip('pycocotools.coco', reason='the extra `detection` is not installed').COCO
COCOeval = pytest.importorskip('pycocotools.cocoeval').COCOeval
encode = pytest.importorskip('pycocotools.mask').encode


def make_coco(folder, count=6, change=lambda content: None):
    """Noise with two squares of 24 pixels an image, and none in the last one; ``change`` alters the annotations.

    Returns the folder of the images and the file of the annotations.
    """
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / 'images').mkdir(parents=True)
    for number in range(1, count + 1):
        size = (64, 64 + 16 * (number % 2))
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / 'images' / f'{number}.png')
        images.append({'id': 10 * number, 'file_name': f'{number}.png', 'height': size[0], 'width': size[1]})
        for left in (0, 32) if number < count else ():
            x, y = left + int(rng.integers(0, 9)), int(rng.integers(0, 41))
            annotations.append({
                'id': len(annotations) + 1, 'image_id': 10 * number, 'category_id': len(annotations) % 3 + 1,
                'iscrowd': 0, 'bbox': [x, y, 24, 24], 'area': 576,
                'segmentation': [[x, y, x + 24, y, x + 24, y + 24, x, y + 24]]})
    content = {'images': images, 'annotations': annotations,
               'categories': [{'id': n, 'name': str(n)} for n in (1, 2, 3)]}
    change(content)
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder / 'images', folder / 'annotations.json'


def loader(data, batch_size=2):
    return DataLoader(data, batch_size, collate_fn=collate)


class Detector(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.parameter = answer, nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return [self.answer(image) for image in images]


def oracle(data, shift=0, masks=True, found=True):
    """Finds what is written in the annotations, moved to the right."""
    known = {image.sum().item(): target for image, target in data}

    def answer(image):
        target = known[image.sum().item()]
        count = len(target['boxes']) if found else 0
        moved = {'boxes': target['boxes'][:count] + torch.tensor([shift, 0, shift, 0]),
                 'labels': target['labels'][:count], 'scores': torch.linspace(0.9, 0.5, count)}
        return {**moved, 'masks': target['masks'][:count, None].roll(shift, -1).float()} if masks else moved

    return Detector(answer)


def careless():
    """Finds some objects twice, some not at all, some as another class, and some that are not there."""
    random = torch.Generator().manual_seed(3)

    def answer(image):
        corners = torch.rand(12, 2, generator=random) * 30
        boxes = torch.cat([corners, corners + 8 + 20 * torch.rand(12, 2, generator=random)], dim=1)
        masks = torch.zeros(12, 1, *image.shape[1:])
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[0, y1:y2, x1:x2] = 1
        return {'boxes': boxes, 'labels': torch.randint(1, 4, (12,), generator=random),
                'scores': torch.rand(12, generator=random), 'masks': masks}

    return Detector(answer)


def test_the_figures_are_cocos(tmp_path):
    data = CocoSet(*make_coco(tmp_path), masks=True)
    perfect = evaluate_coco(oracle(data), loader(data))
    assert set(perfect) == {'bbox', 'segm'}
    for figures in perfect.values():
        assert figures['AP'] == figures['AP50'] == figures['AR100'] == 1
        assert figures['AP_large'] == -1  # there are no objects as large as that
    detector = oracle(data, shift=5, masks=False)
    detector.norm = nn.BatchNorm2d(3).eval()
    # 24 pixels moved by 5 overlap by 19 / 29 = 0.655: right at the thresholds 0.5 to 0.65, four of ten.
    moved = evaluate_coco(detector, loader(data))
    assert [moved['bbox'][key] for key in ('AP', 'AP50', 'AP75')] == pytest.approx([0.4, 1, 0])
    assert (list(moved), detector.training, detector.norm.training) == (['bbox'], True, False)
    assert evaluate_coco(oracle(data, found=False), loader(data))['segm']['AP'] == 0
    # Half of the images: the others do not count.
    half = loader(torch.utils.data.Subset(data, range(2)))
    assert evaluate_coco(oracle(data), half, coco=data.coco)['bbox']['AP'] == 1


def test_the_figures_are_those_of_pycocotools(tmp_path):
    crowd = {'iscrowd': 1, 'segmentation': {'size': [64, 64], 'counts': [0, 640, 64 * 64 - 640]}}
    images, annotations = make_coco(tmp_path, 12, lambda content: content['annotations'][3].update(crowd))
    data = CocoSet(images, annotations, masks=True)
    figures = evaluate_coco(careless(), loader(data))

    rows, detector = {'bbox': [], 'segm': []}, careless()
    for pixels, target in data:
        answer, = detector([pixels])
        for box, label, score, mask in zip(*answer.values(), strict=True):
            x1, y1, x2, y2 = box.tolist()
            row = {'image_id': target['image_id'], 'category_id': int(label), 'score': float(score)}
            rows['bbox'].append({**row, 'bbox': [x1, y1, x2 - x1, y2 - y1]})
            rows['segm'].append({**row, 'segmentation': encode(np.asfortranarray(mask[0].numpy().astype('uint8')))})
    for kind, found in rows.items():
        truth = COCO(annotations)
        theirs = COCOeval(truth, truth.loadRes(found), kind)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
        assert 0 < theirs.stats[1] < 1
        assert list(figures[kind].values()) == pytest.approx(theirs.stats.tolist(), abs=1e-6), kind


def test_targets(tmp_path):
    def add(content):
        crowd = {'iscrowd': 1, 'segmentation': {'size': [64, 80], 'counts': [0, 10, 64 * 80 - 10]}}
        content['annotations'] += [{**content['annotations'][0], 'id': 100 + n, **other}
                                   for n, other in enumerate((crowd, {'bbox': [5, 5, 0, 4]}))]

    images, annotations = make_coco(tmp_path, 3, add)
    data = CocoSet(images, annotations, masks=True)
    assert len(data) == 3
    image, target = data[0]
    assert image.shape == (3, 64, 80)
    assert 0 <= image.min() < image.max() <= 1
    wanted = data.coco.dataset['annotations'][:2]
    assert target['image_id'] == 10
    assert target['labels'].tolist() == [a['category_id'] for a in wanted]
    for box, mask, annotation in zip(target['boxes'].tolist(), target['masks'], wanted, strict=True):
        x, y, w, h = annotation['bbox']
        assert box == [x, y, x + w, y + h]
        assert mask.sum() == w * h
        assert mask[y:y + h, x:x + w].all()
    image, target = data[2]  # without objects
    assert target['boxes'].shape == (0, 4)
    assert target['masks'].shape == (0, 64, 80)
    assert 'masks' not in CocoSet(images, annotations)[0][1]


def test_transforms_that_drop_objects(tmp_path):
    images, annotations = make_coco(
        tmp_path, 3, lambda c: c['annotations'].append({**c['annotations'][0], 'id': 100, 'iscrowd': 1}))
    crop = v2.Compose([
        v2.ToImage(), v2.Lambda(lambda x: v2.functional.crop(x, 0, 0, 64, 32), BoundingBoxes, Image, Mask),
        v2.SanitizeBoundingBoxes(), v2.ToDtype({Image: torch.float32, 'others': None}, scale=True)])
    data = CocoSet(images, annotations, masks=True, transforms=crop)
    for index, count in ((0, 1), (1, 1), (2, 0)):
        image, target = data[index]
        assert image.shape == (3, 64, 32)
        assert target['boxes'].shape == (count, 4)
        assert target['boxes'].dtype == torch.float32
        assert target['masks'].shape == (count, 64, 32)
        assert len(target['labels']) == count
        assert all(type(target[key]) is torch.Tensor for key in ('boxes', 'labels', 'masks'))


def test_what_a_file_leaves_out(tmp_path):
    def leave_out(content):
        for annotation in content['annotations']:
            del annotation['area'], annotation['iscrowd']

    images, annotations = make_coco(tmp_path, 3, leave_out)
    data = CocoSet(images, annotations, masks=True)
    for coco in (None, COCO(annotations)):
        assert evaluate_coco(oracle(data), loader(data), coco)['segm']['AP'] == 1


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda c: c['annotations'][1].update(category_id=0), "its annotation 2 has no 'category_id' from 1 on, and "),
    (lambda c: c['annotations'][1].pop('segmentation'), "its annotation 2 has no 'segmentation'; without masks=True "),
    (lambda c: c['annotations'][1].pop('bbox'), "its annotation 2 has no 'bbox'."),
    (lambda c: c.pop('annotations'), "is not in COCO's format: there is no 'annotations'.")])
def test_bad_annotations(change, sentence, tmp_path):
    images, annotations = make_coco(tmp_path, 2, change)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        CocoSet(images, annotations, masks=True)
    assert '\n' not in str(caught.value)
    with pytest.raises(ValueError, match='There is no folder of images at '):
        CocoSet(tmp_path / 'nowhere', annotations)
    with pytest.raises(ValueError, match="No such file or directory: '.*nowhere.json'"):
        CocoSet(images, tmp_path / 'nowhere.json')


def test_a_process_without_images_waits_for_none_and_has_the_figures_of_all(tmp_path, monkeypatch):
    data = CocoSet(*make_coco(tmp_path), masks=True)
    alone = evaluate_coco(oracle(data, shift=5), loader(data))
    said = []  # by the processes before this one

    def all_gather_object(parts, own):
        said.append(own)
        parts[:] = [*said, {}][:2]

    monkeypatch.setattr('timm_asr.detection.evaluate.dist', SimpleNamespace(
        is_initialized=lambda: True, get_world_size=lambda: 2, all_gather_object=all_gather_object))
    for images in (loader(data), []):
        assert evaluate_coco(oracle(data, shift=5), images, coco=data.coco) == alone
    del said[1:]  # now the second process has the images of the first, as samplers repeat some, and has them twice
    assert evaluate_coco(oracle(data, shift=5), [*loader(data), *loader(data)], coco=data.coco) == alone


def test_bad_evaluations(tmp_path):
    data = CocoSet(*make_coco(tmp_path, count=2), masks=True)
    with pytest.raises(ValueError, match='The loader gives no images to evaluate on.'):
        evaluate_coco(oracle(data), [], coco=data.coco)
    with pytest.raises(ValueError, match='has no COCO ground truth; pass it as'):
        evaluate_coco(oracle(data), list(loader(data)))
