"""The declared flags: timm's names, meanings and defaults, in YAML too, and what is refused by name."""

from pathlib import Path

import pytest
import yaml

from timm_asr.engine.commands import benchmark, export, train, validate
from timm_asr.engine.flags import CORES
from timm_asr.engine.options import pairs, parse, switch, value

COMMANDS = {'train': train, 'validate': validate, 'benchmark': benchmark}
FLAGS = yaml.safe_load(Path(__file__).with_name('timm_flags.yaml').read_text(encoding='utf-8'))


def refusal(call, capsys):
    """The one line with which a call ends in status 2."""
    with pytest.raises(SystemExit) as ended:
        call()
    error = capsys.readouterr().err
    assert (ended.value.code, error.count('\n')) == (2, 1)
    return error


@pytest.mark.parametrize('name', COMMANDS)
def test_every_flag_of_timm_with_its_default(name):
    command, flags = COMMANDS[name], FLAGS[name]
    workers = {'workers': min(4, CORES)} if name != 'benchmark' else {}
    assert {option.key: option.start for option in command.OPTIONS} == {**flags['timm'], **flags['ours'], **workers}
    assert {alias: option.key for option in command.OPTIONS for alias in option.aliases} == flags['aliases']
    assert all(option.keywords['help'] and option.group for option in command.OPTIONS)


@pytest.mark.parametrize(('command', 'name'), [(COMMANDS[key], name) for key in COMMANDS
                                               for name in FLAGS[key]['refused']])
def test_naming_a_refused_flag_ends_with_its_sentence(command, name, capsys, tmp_path):
    config = tmp_path / 'c.yaml'
    config.write_text(f'{name.lstrip("-").replace("-", "_")}: true\n')
    for argv in ([name], [name, '1'], [f'{name}=1'], ['-c', str(config)]):
        assert f'{name}: ' in refusal(lambda argv=argv: command.main(argv, 'x.py'), capsys)


OPTIONS = [
    value('--lr', float, None, 'rate, 5% of something'), switch('--amp', 'on'), switch('--no-aug', 'off'),
    value('--batch-size', int, 128, '', '-b'), value('--scale', float, [0.08, 1.0], '', nargs='+'),
    value('--input-size', int, None, '', nargs=3), value('--clip-mode', str, 'norm', '', choices=('norm', 'value')),
    value('--torchcompile', str, None, '', nargs='?', const='inductor'), pairs('--model-kwargs', ''),
    value('--output', str, '', ''), value('data', str, None, '', nargs='?')]


def read(text, tmp_path, *argv):
    config = tmp_path / 'config.yaml'
    config.write_text(text)
    refused = dict.fromkeys(('--fuser', '--kd-model-name', '--kd-*'), 'it is gone')
    return parse(OPTIONS, refused, ['--config', str(config), *argv], prog='x')


def test_a_refused_key_that_is_not_set_is_passed_over(tmp_path):
    """timm's own args.yaml has a key for every flag."""
    assert read('fuser: ""\nkd_loss_type: kl\nlr: 0.5\n', tmp_path).lr == 0.5
    with pytest.raises(SystemExit):
        read('kd_model_name: resnet50\n', tmp_path)


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
    ('lr: fast', "argument --lr: invalid float value: 'fast'"), ('lr: [1, 2]', 'lr: expected one value, got [1, 2]'),
    ('batch_size: 1.5', "argument --batch-size/-b: invalid int value: '1.5'"),
    ('batch_size: null', "argument --batch-size/-b: invalid int value: ''"),
    ('batch_size: true', "argument --batch-size/-b: invalid int value: 'True'"),
    ('amp: 1', "argument --amp/--no-amp: ignored explicit argument '1'"),
    ('clip_mode: agc', "argument --clip-mode: invalid choice: 'agc' (choose from 'norm', 'value')"),
    ('input_size: [3, 8]', 'argument --input-size: expected 3 arguments'),
    ('scale: []', 'argument --scale: expected at least one argument'),
    ('model_kwargs: [a]', '--model-kwargs: expected KEY=VALUE, got'), ('fuser: te', 'fuser: it is gone'),
    ('- a', 'is not valid YAML for options by name: it holds a list'), ('a: [', 'is not valid YAML (while parsing')])
def test_what_is_wrong_in_yaml_is_said(text, said, tmp_path, capsys):
    error = refusal(lambda: read(text, tmp_path), capsys)
    assert said in error
    assert error.startswith('x: error: --config ')


@pytest.mark.parametrize(('argv', 'said'), [
    (['--batchsize', '3'], 'unknown option --batchsize; did you mean --batch-size?'),
    (['--conf', 'c.yaml'], 'unknown option --conf; did you mean --config?'),
    (['a', 'b'], "'b' belongs to no option"), (['--lr', 'x'], "argument --lr: invalid float value: 'x'"),
    (['--clip-mode', 'agc'], 'invalid choice')])
def test_what_is_wrong_on_the_line_is_said(argv, said, capsys):
    assert said in refusal(lambda: parse(OPTIONS, {}, argv, prog='x'), capsys)


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


def test_yaml_may_go_with_a_positional_or_name_it(tmp_path):
    (tmp_path / 'c.yaml').write_text('output: x\n')
    args = parse(export.OPTIONS, {}, ['run.pth', '--config', str(tmp_path / 'c.yaml')])
    assert (args.checkpoint, args.output) == ('run.pth', 'x')
    (tmp_path / 'c.yaml').write_text('checkpoint: run.pth\n')
    assert parse(export.OPTIONS, {}, ['--config', str(tmp_path / 'c.yaml')]).checkpoint == 'run.pth'
    with pytest.raises(SystemExit):
        parse(export.OPTIONS, {}, [])
