"""The flags of validate.py and benchmark.py: timm's, with timm's defaults; ours; and those refused with a reason."""

from typing import Any

import pytest
from flag_checks import check_flags

from timm_asr.engine.commands import benchmark, validate

VALIDATE_KEPT = """
    data --data-dir --dataset --split --num-samples --dataset-download --class-map --input-key --input-img-mode
    --target-key --dataset-trust-remote-code --model --pretrained --workers --batch-size --img-size --in-chans
    --input-size --use-train-size --crop-pct --crop-mode --crop-border-pixels --mean --std --interpolation
    --num-classes --gp --log-freq --checkpoint --num-gpu --test-pool --no-prefetcher --pin-mem --channels-last --device
    --amp --amp-dtype --model-dtype --tf-preprocessing --use-ema --fast-norm --reparam --model-kwargs
    --torchcompile-mode --torchscript --torchcompile --results-file --results-format --real-labels --valid-labels
    --retry --seed --metrics-avg
"""
VALIDATE_OURS = {'--asr', '--bn-noise', '--fold-bn', '--per-class'}
VALIDATE_REFUSED = {'--fuser', '--aot-autograd', '--naflex-loader', '--naflex-max-seq-len'}
VALIDATE_DEFAULTS: dict[str, Any] = {
    'data': None, 'data_dir': None, 'dataset': '', 'split': 'validation', 'num_samples': None,
    'dataset_download': False, 'class_map': '', 'input_key': None, 'input_img_mode': None, 'target_key': None,
    'dataset_trust_remote_code': False, 'model': 'dpn92', 'pretrained': False, 'workers': 4, 'batch_size': 256,
    'img_size': None, 'in_chans': None, 'input_size': None, 'use_train_size': False, 'crop_pct': None,
    'crop_mode': None, 'crop_border_pixels': None, 'mean': None, 'std': None, 'interpolation': '',
    'num_classes': None, 'gp': None, 'log_freq': 10, 'checkpoint': '', 'num_gpu': 1, 'test_pool': False,
    'no_prefetcher': False, 'pin_mem': False, 'channels_last': False, 'amp': False, 'amp_dtype': 'float16',
    'model_dtype': None, 'tf_preprocessing': False, 'use_ema': False, 'fast_norm': False, 'reparam': False,
    'model_kwargs': {}, 'torchcompile_mode': None, 'torchscript': False, 'torchcompile': None, 'results_file': '',
    'results_format': 'csv', 'real_labels': '', 'valid_labels': '', 'retry': False, 'seed': 42, 'metrics_avg': None,
}
VALIDATE_ALIASES = {'--model': '-m', '--workers': '-j', '--batch-size': '-b'}

BENCHMARK_KEPT = """
    --model-list --bench --detail --no-retry --results-file --results-format --num-warm-iter --num-bench-iter --device
    --model --batch-size --img-size --input-size --use-train-size --num-classes --gp --channels-last
    --grad-checkpointing --amp --amp-dtype --precision --fast-norm --reparam --model-kwargs --torchcompile-mode
    --torchscript --torchcompile --opt --opt-eps --opt-betas --momentum --weight-decay --clip-grad --clip-mode
    --smoothing --drop --drop-path --drop-block
"""
BENCHMARK_OURS = {'--asr', '--fold-bn', '--versus', '--rounds', '--seed'}
BENCHMARK_REFUSED = {'--fuser', '--aot-autograd'}
BENCHMARK_DEFAULTS: dict[str, Any] = {
    'model_list': '', 'bench': 'both', 'detail': False, 'no_retry': False, 'results_file': '',
    'results_format': 'csv', 'num_warm_iter': 10, 'num_bench_iter': 40, 'model': 'resnet50', 'batch_size': 256,
    'img_size': None, 'input_size': None, 'use_train_size': False, 'num_classes': None, 'gp': None,
    'channels_last': False, 'grad_checkpointing': False, 'amp': False, 'amp_dtype': 'float16',
    'precision': 'float32', 'fast_norm': False, 'reparam': False, 'model_kwargs': {}, 'torchcompile_mode': None,
    'torchscript': False, 'torchcompile': None, 'opt': 'sgd', 'opt_eps': None, 'opt_betas': None, 'momentum': 0.9,
    'weight_decay': 0.0001, 'clip_grad': None, 'clip_mode': 'norm', 'smoothing': 0.1, 'drop': 0.0,
    'drop_path': None, 'drop_block': None,
}
BENCHMARK_ALIASES = {'--model': '-m', '--batch-size': '-b'}


def test_validate() -> None:
    check_flags(validate.OPTIONS, VALIDATE_KEPT, VALIDATE_OURS, VALIDATE_DEFAULTS, VALIDATE_ALIASES)
    assert set(validate.REFUSED) == VALIDATE_REFUSED


def test_benchmark() -> None:
    check_flags(benchmark.OPTIONS, BENCHMARK_KEPT, BENCHMARK_OURS, BENCHMARK_DEFAULTS, BENCHMARK_ALIASES)
    assert set(benchmark.REFUSED) == BENCHMARK_REFUSED


@pytest.mark.parametrize(('command', 'flag'), [
    (command, flag) for command in (validate, benchmark) for flag in sorted(command.REFUSED)])
def test_refused_flags_say_why(command: Any, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main([flag])
    assert stop.value.code == 2
    assert f'{flag}: {command.REFUSED[flag]}' in capsys.readouterr().err
