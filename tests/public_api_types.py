"""Not run: what a type checker must make of the public API, as a user writes it."""

from pathlib import Path
from typing import assert_type

import timm
import torch
from torch import nn

import timm_asr


def use_everything(model: nn.Module) -> None:
    assert_type(timm_asr.attach_asr(model, 'se', sites=['layer1.*.bn2'], depth=2, init='N_0.1'), nn.Module)
    assert_type(timm_asr.auxiliary_loss(model), torch.Tensor)
    assert_type(timm_asr.has_asr(model), bool)
    assert_type(timm_asr.fold_asr(model), nn.Module)
    assert_type(timm_asr.reparameterize(model, fold_bn=True), nn.Module)
    assert_type(timm_asr.save_fused(model, 'folder'), Path)
    assert_type(timm_asr.quantize_onnx('net.onnx', 'int8.onnx', [torch.randn(8, 3, 32, 32)]), Path)
    assert_type(timm_asr.push_to_hub(model, 'me/net', license='mit', dry_run=True).files, list[tuple[str, int]])
    assert_type(timm_asr.load_trainable('me/net', num_classes=7), nn.Module)
    assert_type([one.id for one in timm_asr.list_published('me')], list[str])
    assert_type(timm_asr.plain_architecture('resnet50_asr_se'), str)
    assert_type(timm_asr.list_gates(foldable=True), list[str])
    gate: timm_asr.ChannelGate = timm_asr.get_gate('se')(64)
    timm_asr.attach_asr(timm.create_model('resnet18'), type(gate))
