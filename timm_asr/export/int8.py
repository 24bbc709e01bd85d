"""Static int8 quantization of an ONNX file, by onnxruntime."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from .graph import check_packages


def quantize_onnx(file: str | Path, target: str | Path, batches: Iterable[torch.Tensor]) -> Path:
    """Quantize a network of :func:`timm_asr.export_onnx` to int8.

    Weights get one scale an output channel, activations one scale a tensor, whose range is read off the images (QDQ
    format, symmetric). ASR scales output channels, so folding it changes the scales of the weights and leaves their
    int8 codes as they are: w_c v_c / (max |w_c| v_c / 127) = w_c / (max |w_c| / 127).

    Args:
        file: The float network; export it with ``fold_bn=True``.
        target: Where the int8 network goes, and what is returned. It is written only when all is done.
        batches: Calibration images (B, C, H, W), float32, normalized as for the network. Some hundred images suffice.

    Raises:
        BadInput: A package of the extra ``onnx`` is missing, or there are no images, or the file cannot be
            written.
    """
    check_packages()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds = [{'images': batch.numpy()} for batch in batches]
    if not feeds:
        raise BadInput('int8 needs images to calibrate on, and there are none')

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return feeds.pop(0) if feeds else None

    target = Path(target)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'.{target.stem}.', dir=target.absolute().parent) as folder:
            prepared, part = Path(folder) / 'prepared.onnx', Path(folder) / 'int8.onnx'
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            quantize_static(str(prepared), str(part), Reader(), per_channel=True, activation_type=QuantType.QInt8,
                            weight_type=QuantType.QInt8, extra_options={'ActivationSymmetric': True})
            part.replace(target)
    except OSError as error:
        raise BadInput(f'{target} cannot be written ({error.strerror or error})') from None
    return target


def onnx_top1(file: str | Path, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Top-1 accuracy of an ONNX network in percent, over batches of (images, labels)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    right = count = 0
    for images, labels in loader:
        logits = session.run(None, {'images': images.numpy()})[0]
        right, count = right + int((logits.argmax(1) == labels.numpy()).sum()), count + len(labels)
    return 100 * right / max(count, 1)
