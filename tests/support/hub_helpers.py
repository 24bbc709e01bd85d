"""Folders of weights to publish and to load, made without training."""

import json
from pathlib import Path

import torch
from helpers import images, randomize, small

from timm_asr import save_fused
from timm_asr.export.place import list_in_manifest

METRICS = {
    'model': 'resnet20_asr_se', 'plain': 'resnet20', 'dataset': 'cifar10', 'epoch': 3, 'weights': 'raw',
    'images': 10_000, 'top1': 91.25, 'top1_folded': 91.25, 'top5': 99.5, 'top5_folded': 99.5, 'parameters': 275_183,
    'parameters_folded': 272_474, 'parameters_plain': 272_474, 'logit_difference_relative': 3e-7,
    'images_per_second_model': 2145.3, 'images_per_second_folded': 2218.8, 'images_per_second_plain': 2211.6}


def make_folder(folder: Path, name: str = 'resnet20_asr_se', *, trainable: bool = True, extras: bool = False,
                seed: int = 0, **kwargs) -> Path:
    """What an export leaves, and with ``extras`` what a run does; ``check.pt`` beside it has images and logits."""
    model = randomize(small(name, dtype=torch.float32, **kwargs), seed).eval()
    save_fused(model, folder, keep_trainable=trainable, check=False, metrics=METRICS if extras else None)
    if extras:
        (folder / 'attention.png').write_bytes(b'\x89PNG\r\n\x1a\nattention')
        (folder / 'summary.csv').write_text('epoch,train_loss\n0,1.5\n')
        (folder / 'args.yaml').write_text('model: resnet20_asr_se\ndata_dir: /home/me/cifar10\nlr: 0.1\n')
        list_in_manifest(folder, ['attention.png', 'summary.csv', 'args.yaml'])
        (folder / 'last.pth.tar').write_bytes(b'a checkpoint')
        (folder / 'pytorch_model.bin').write_bytes(b'a pickle')
        (folder / 'other.png').write_bytes(b'a key')
    x = images(model)
    with torch.no_grad():
        torch.save((x, model(x)), folder.parent / f'{folder.name}.check.pt')
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder as a repository has them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def change_config(folder: Path, **root: object) -> None:
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **root}))


def change_section(folder: Path, **entries: object) -> None:
    """Change entries of the section of this package; None takes one away."""
    section = {**json.loads((folder / 'config.json').read_text())['timm_asr'], **entries}
    change_config(folder, timm_asr={key: value for key, value in section.items() if value is not None})
