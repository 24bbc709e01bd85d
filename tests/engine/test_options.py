"""The declared flags: timm's names, meanings and defaults, in YAML too, and what is refused by name."""

import pytest

from timm_asr.engine.commands import benchmark, train, validate
from timm_asr.engine.flags import CORES
from timm_asr.engine.options import pairs, parse, switch, value

# Every flag of timm's train.py with its default there ('' and None differ), but no more workers than cores.
TIMM = {
    'aa': None, 'amp': False, 'amp_dtype': 'float16', 'aug_repeats': 0, 'aug_splits': 0, 'batch_size': 128,
    'bce_loss': False, 'bce_pos_weight': None, 'bce_sum': False, 'bce_target_thresh': None, 'bn_eps': None,
    'bn_momentum': None, 'channels_last': False, 'checkpoint_hist': 10, 'class_map': '', 'clip_grad': None,
    'clip_mode': 'norm', 'color_jitter': 0.4, 'color_jitter_prob': None, 'cooldown_epochs': 0, 'crop_pct': None,
    'cutmix': 0.0, 'cutmix_minmax': None, 'data': None, 'data_dir': None, 'dataset': '', 'dataset_download': False,
    'dataset_trust_remote_code': False, 'decay_epochs': 90, 'decay_milestones': [90, 180, 270], 'decay_rate': 0.1,
    'device_modules': None, 'dist_bn': 'reduce', 'drop': 0.0, 'drop_block': None, 'drop_connect': None,
    'drop_path': None, 'epoch_repeats': 0.0, 'epochs': 300, 'eval_metric': 'top1', 'experiment': '',
    'fast_norm': False, 'gaussian_blur_prob': None, 'gp': None, 'grad_accum_steps': 1, 'grad_checkpointing': False,
    'grayscale_prob': None, 'head_init_bias': None, 'head_init_scale': None, 'hflip': 0.5, 'img_size': None,
    'in_chans': None, 'initial_checkpoint': '', 'input_img_mode': None, 'input_key': None, 'input_size': None,
    'interpolation': '', 'jsd_loss': False, 'layer_decay': None, 'layer_decay_min_scale': 0,
    'layer_decay_no_opt_scale': None, 'local_rank': 0, 'log_interval': 50, 'log_wandb': False, 'lr': None,
    'lr_base': 0.1, 'lr_base_scale': '', 'lr_base_size': 256, 'lr_cycle_decay': 0.5, 'lr_cycle_limit': 1,
    'lr_cycle_mul': 1.0, 'lr_k_decay': 1.0, 'lr_noise': None, 'lr_noise_pct': 0.67, 'lr_noise_std': 1.0, 'mean': None,
    'min_lr': 0, 'mixup': 0.0, 'mixup_mode': 'batch', 'mixup_off_epoch': 0, 'mixup_prob': 1.0,
    'mixup_switch_prob': 0.5, 'model': 'resnet50', 'model_dtype': None, 'model_ema': False, 'model_ema_decay': 0.9998,
    'model_ema_force_cpu': False, 'model_ema_warmup': False, 'model_kwargs': {}, 'momentum': 0.9, 'no_aug': False,
    'no_ddp_bb': False, 'no_prefetcher': False, 'no_resume_opt': False, 'num_classes': None, 'opt': 'sgd',
    'opt_betas': None, 'opt_eps': None, 'opt_kwargs': {}, 'output': '', 'patience_epochs': 10, 'pin_mem': False,
    'pretrained': False, 'pretrained_path': None, 'ratio': [0.75, 1.3333333333333333], 'recount': 1,
    'recovery_interval': 0, 'remode': 'pixel', 'reprob': 0.0, 'resplit': False, 'resume': '', 'save_images': False,
    'scale': [0.08, 1.0], 'sched': 'cosine', 'sched_on_updates': False, 'seed': 42, 'smoothing': 0.1,
    'split_bn': False, 'start_epoch': None, 'std': None, 'sync_bn': False, 'synchronize_step': False,
    'target_key': None, 'torchcompile': None, 'torchcompile_mode': None, 'torchscript': False,
    'train_batch_sizes': None, 'train_batches_per_epoch': None, 'train_crop_mode': None, 'train_img_sizes': None,
    'train_interpolation': 'random', 'train_num_samples': None, 'train_size_probs': None,
    'train_size_random_mix': 0.1, 'train_size_schedule': 'constant', 'train_size_schedule_spread': 0.65,
    'train_split': 'train', 'use_multi_epochs_loader': False, 'val_interval': 1, 'val_num_samples': None,
    'val_split': 'validation', 'validation_batch_size': None, 'variable_batch_loss_scale': 'none', 'vflip': 0.0,
    'wandb_project': None, 'wandb_resume_id': '', 'wandb_tags': [], 'warmup_epochs': 5, 'warmup_lr': 1e-5,
    'warmup_prefix': False, 'weight_decay': 2e-5, 'worker_seeding': 'all', 'workers': min(4, CORES),
}
#: Our own flags, and the device, whose default is found.
OURS = {'asr': None, 'asr_constant': False, 'asr_gain': None, 'asr_init': None, 'bn_noise': '', 'decay_all': False,
        'device': None, 'holdout': 0, 'last_norm_init': None, 'no_fuse': False, 'no_progress': False,
        'overwrite': False, 'psi_lr': None, 'site_lr': None, 'split_seed': 0, 'train_images': None}
ALIASES = {'-b': 'batch_size', '-vb': 'validation_batch_size', '-j': 'workers', '--dr': 'decay_rate',
           '--train-steps-per-epoch': 'train_batches_per_epoch'}
REFUSED = {
    '--fuser', '--tta',
    '--naflex-loader', '--naflex-train-seq-lens', '--naflex-max-seq-len', '--naflex-patch-sizes',
    '--naflex-patch-size-probs', '--naflex-loss-scale', '--naflex-patchify-channels-first',
    '--kd-model-name', '--kd-distill-type', '--kd-loss-type', '--kd-temperature', '--kd-student-feature-dim',
    '--kd-teacher-feature-dim', '--kd-token-distill-type', '--distill-loss-weight', '--task-loss-weight'}


#: The same of its validate.py and benchmark.py.
VALIDATE = {
    'data': None, 'data_dir': None, 'dataset': '', 'split': 'validation', 'num_samples': None,
    'dataset_download': False, 'class_map': '', 'input_key': None, 'input_img_mode': None, 'target_key': None,
    'dataset_trust_remote_code': False, 'model': 'dpn92', 'pretrained': False, 'workers': min(4, CORES),
    'batch_size': 256, 'img_size': None, 'in_chans': None, 'input_size': None, 'use_train_size': False,
    'crop_pct': None,
    'crop_mode': None, 'crop_border_pixels': None, 'mean': None, 'std': None, 'interpolation': '',
    'num_classes': None, 'gp': None, 'log_freq': 10, 'checkpoint': '', 'num_gpu': 1, 'test_pool': False,
    'no_prefetcher': False, 'pin_mem': False, 'channels_last': False, 'amp': False, 'amp_dtype': 'float16',
    'model_dtype': None, 'use_ema': False, 'fast_norm': False, 'reparam': False,
    'model_kwargs': {}, 'torchcompile_mode': None, 'torchscript': False, 'torchcompile': None, 'results_file': '',
    'results_format': 'csv', 'real_labels': '', 'valid_labels': '', 'retry': False, 'seed': 42, 'metrics_avg': None,
}
BENCHMARK = {
    'model_list': '', 'bench': 'both', 'detail': False, 'no_retry': False, 'results_file': '',
    'results_format': 'csv', 'num_warm_iter': 10, 'num_bench_iter': 40, 'model': 'resnet50', 'batch_size': 256,
    'img_size': None, 'input_size': None, 'use_train_size': False, 'num_classes': None, 'gp': None,
    'channels_last': False, 'grad_checkpointing': False, 'amp': False, 'amp_dtype': 'float16',
    'precision': 'float32', 'fast_norm': False, 'reparam': False, 'model_kwargs': {}, 'torchcompile_mode': None,
    'torchscript': False, 'torchcompile': None, 'opt': 'sgd', 'opt_eps': None, 'opt_betas': None, 'momentum': 0.9,
    'weight_decay': 0.0001, 'clip_grad': None, 'clip_mode': 'norm', 'smoothing': 0.1, 'drop': 0.0,
    'drop_path': None, 'drop_block': None,
}
COMMANDS = [
    (train, TIMM | OURS, ALIASES | {'--local-rank': 'local_rank'}, REFUSED),
    (validate, VALIDATE | {'asr': None, 'bn_noise': '', 'device': None, 'fold_bn': False, 'per_class': False},
     {'-m': 'model', '-j': 'workers', '-b': 'batch_size'},
     {'--fuser', '--aot-autograd', '--naflex-loader', '--naflex-max-seq-len', '--tf-preprocessing'}),
    (benchmark, BENCHMARK | {'asr': None, 'device': None, 'fold_bn': False, 'rounds': 20, 'seed': 42, 'versus': None},
     {'-m': 'model', '-b': 'batch_size'}, {'--fuser', '--aot-autograd'})]


@pytest.mark.parametrize(('command', 'defaults', 'aliases', 'refused'), COMMANDS)
def test_every_flag_of_timm_with_its_default(command, defaults, aliases, refused):
    assert {option.key: option.start for option in command.OPTIONS} == defaults
    assert {alias: option.key for option in command.OPTIONS for alias in option.aliases} == aliases
    assert all(option.keywords['help'] and option.group for option in command.OPTIONS)


@pytest.mark.parametrize(('command', 'name'), [(command, name) for command, *_, names in COMMANDS
                                               for name in sorted(names)])
def test_naming_a_refused_flag_ends_with_its_sentence(command, name, capsys, tmp_path):
    config = tmp_path / 'c.yaml'
    config.write_text(f'{name.lstrip("-").replace("-", "_")}: 1\n')
    for argv in ([name], [name, '1'], [f'{name}=1'], ['-c', str(config)]):
        with pytest.raises(SystemExit) as ended:
            command.main(argv, 'x.py')
        error = capsys.readouterr().err
        assert (ended.value.code, error.count('\n')) == (2, 1)
        assert f'{name}: ' in error


OPTIONS = [
    value('--lr', float, None, 'rate, 5% of something'),
    switch('--amp', 'on'),
    switch('--no-aug', 'off'),
    value('--batch-size', int, 128, '', '-b'),
    value('--scale', float, [0.08, 1.0], '', nargs='+'),
    value('--input-size', int, None, '', nargs=3),
    value('--clip-mode', str, 'norm', '', choices=('norm', 'value')),
    value('--torchcompile', str, None, '', nargs='?', const='inductor'),
    pairs('--model-kwargs', ''),
    value('--output', str, '', ''),
    value('data', str, None, '', nargs='?'),
]


def read(text, tmp_path, *argv):
    config = tmp_path / 'config.yaml'
    config.write_text(text)
    return parse(OPTIONS, {'--fuser': 'it is gone'}, ['--config', str(config), *argv], prog='x')


def test_command_line():
    args = parse(OPTIONS, {}, ['-b', '4', '--lr=1e-3', '--amp', '--torchcompile', '--model-kwargs', 'a=1', 'b=x'])
    assert (args.batch_size, args.lr, args.amp, args.torchcompile) == (4, 1e-3, True, 'inductor')
    assert args.model_kwargs == {'a': 1, 'b': 'x'}
    assert (args.no_aug, args.scale, args.data) == (False, [0.08, 1.0], None)


def test_yaml_sets_everything_and_the_command_line_wins(tmp_path):
    args = read('lr: 1e-4\nbatch-size: 3\namp: true\nno_aug: true\nscale: 0.5\ninput_size: [3, 8, 8]\n'
                'clip_mode: value\ntorchcompile: true\nmodel_kwargs: {a: [1]}\noutput: 2024\ndata: null\n'
                'fuse_every: 2\n', tmp_path, '--batch-size', '7', '--no-amp')  # the last is of older runs
    assert (args.lr, args.batch_size, args.amp, args.no_aug) == (1e-4, 7, False, True)
    assert (args.scale, args.input_size, args.clip_mode) == ([0.5], [3, 8, 8], 'value')
    assert (args.torchcompile, args.model_kwargs, args.output) == ('inductor', {'a': [1]}, '2024')


@pytest.mark.parametrize(('text', 'said'), [
    ('batchsize: 3', "unknown key 'batchsize'; did you mean 'batch_size'?"),
    ('lr: fast', "argument --lr: invalid float value: 'fast'"),
    ('lr: [1, 2]', 'lr: expected one value, got [1, 2]'),
    ('batch_size: 1.5', "argument --batch-size/-b: invalid int value: '1.5'"),
    ('batch_size: null', "argument --batch-size/-b: invalid int value: ''"),
    ('batch_size: true', "argument --batch-size/-b: invalid int value: 'True'"),
    ('amp: 1', "argument --amp/--no-amp: ignored explicit argument '1'"),
    ('clip_mode: agc', "argument --clip-mode: invalid choice: 'agc' (choose from 'norm', 'value')"),
    ('input_size: [3, 8]', 'argument --input-size: expected 3 arguments'),
    ('scale: []', 'argument --scale: expected at least one argument'),
    ('model_kwargs: [a]', '--model-kwargs: expected KEY=VALUE, got'),
    ('fuser: te', 'fuser: it is gone'),
    ('- a', 'is not valid YAML for options by name: it holds a list'),
    ('a: [', 'is not valid YAML (while parsing'),
])
def test_what_is_wrong_in_yaml_is_said(text, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        read(text, tmp_path)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith('x: error: --config ')
    assert error.count('\n') == 1


@pytest.mark.parametrize(('argv', 'said'), [
    (['--batchsize', '3'], 'unknown option --batchsize; did you mean --batch-size?'),
    (['a', 'b'], "'b' belongs to no option"),
    (['--lr', 'x'], "argument --lr: invalid float value: 'x'"),
    (['--clip-mode', 'agc'], 'invalid choice'),
])
def test_what_is_wrong_on_the_line_is_said(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(OPTIONS, {}, argv, prog='x')
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count('\n') == 1


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(train.OPTIONS, train.REFUSED, ['--help'], prog='train.py')
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(option.name in text for option in train.OPTIONS)
    assert '--fuser' not in text


def test_defaults_are_not_shared():
    first, second = parse(OPTIONS, {}, []), parse(OPTIONS, {}, [])
    first.scale.append(2)
    first.model_kwargs['a'] = 1
    assert (second.scale, second.model_kwargs) == ([0.08, 1.0], {})
