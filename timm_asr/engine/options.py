"""Declared command line flags: one ``Option`` a flag, settable on the command line and, through ``--config``, in YAML.

A script declares a list of options and a table of refused names; everything else is done here:

    OPTIONS = [Option('--lr', type=float, help='learning rate'), Option('--amp', kind='switch', help='...')]
    REFUSED = {'--fuser': 'the JIT fusers are gone from PyTorch; use --torchcompile'}
    args = parse(OPTIONS, REFUSED, argv, prog='train.py')
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from timm.utils import ParseKwargs

from ..errors import nearest


@dataclass(frozen=True)
class Option:
    """One flag.

    Args:
        name: Long name with its dashes (``--batch-size``), or a bare name for a positional argument.
        aliases: Other spellings (``-b``).
        kind: ``value`` (takes values), ``switch`` (off unless given; ``--no-NAME`` turns it off again, so that the
            command line can undo a YAML file) or ``kwargs`` (``a=1 b=x`` pairs, a mapping in YAML).
        type: Converts one value, on the command line and in YAML alike.
        default: Value when neither sets it. ``None`` in YAML is accepted where the default is ``None``.
        nargs, const, choices, metavar: As in ``argparse``.
        help: One sentence, shown by ``--help`` with the default.
        group: Heading under which ``--help`` lists it.
        exclusive: Options with the same non-empty word exclude each other.
        dest: Attribute of the result; the long name with underscores if empty.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: str = 'value'
    type: Callable[[str], Any] = str
    default: Any = None
    nargs: int | str | None = None
    const: Any = None
    choices: tuple[Any, ...] | None = None
    metavar: str | None = None
    help: str = ''
    group: str = 'General'
    exclusive: str = ''
    dest: str = ''

    @property
    def key(self) -> str:
        """Name in the parsed namespace and in YAML."""
        return self.dest or self.name.lstrip('-').replace('-', '_')

    @property
    def start(self) -> Any:
        """The default, as a new object where it is mutable."""
        if self.kind == 'switch':
            return bool(self.default)
        if self.kind == 'kwargs':
            return dict(self.default or {})
        return list(self.default) if isinstance(self.default, list | tuple) else self.default


CONFIG_OPTIONS = [
    Option('--config', ('-c',), metavar='FILE', help='YAML file that sets any of these options; the command line wins'),
    Option('--print-config', kind='switch', help='print everything as resolved, as YAML, and stop'),
]


class Parser(argparse.ArgumentParser):
    """An argument parser whose error is one line, without the page of usage that 150 flags would make."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


class _Refuse(argparse.Action):
    """A name that is known and left out on purpose: naming it ends the program with the reason."""

    def __init__(self, option_strings: list[str], dest: str, reason: str = '', **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs='*', help=argparse.SUPPRESS)
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f'{self.option_strings[0]}: {self.reason}')


def _add(target: Any, option: Option) -> None:
    names = [option.name, *option.aliases]
    text = option.help.replace('%', '%%')
    if option.kind == 'switch':
        # A flag that is itself a negation keeps its one spelling.
        if option.name.startswith('--no-'):
            target.add_argument(*names, dest=option.key, action='store_true', default=option.start, help=text)
        else:
            action = argparse.BooleanOptionalAction
            target.add_argument(*names, dest=option.key, action=action, default=option.start, help=text)
        return
    if option.default not in (None, '', {}):
        text += f' (default: {option.default})'
    keywords: dict[str, Any] = {'default': option.start, 'help': text, 'metavar': option.metavar}
    if option.name.startswith('-'):
        keywords['dest'] = option.key
    if option.kind == 'kwargs':
        target.add_argument(*names, nargs='*', action=ParseKwargs, **(keywords | {'metavar': 'KEY=VALUE'}))
        return
    if option.nargs is not None:
        keywords['nargs'] = option.nargs
    if option.const is not None:
        keywords['const'] = option.const
    target.add_argument(*names, type=option.type, choices=option.choices, **keywords)


def build_parser(
        options: Sequence[Option],
        prog: str | None = None,
        description: str = '',
        refused: Mapping[str, str] | None = None,
) -> Parser:
    """The ``argparse`` parser of these options, grouped by heading, refused names included but not listed."""
    parser = Parser(prog=prog, description=description)
    groups: dict[str, Any] = {}
    exclusive: dict[str, Any] = {}
    for option in options:
        target = groups.setdefault(option.group, None) or parser.add_argument_group(option.group)
        groups[option.group] = target
        if option.exclusive:
            target = exclusive.setdefault(option.exclusive, None) or target.add_mutually_exclusive_group()
            exclusive[option.exclusive] = target
        _add(target, option)
    for name, reason in (refused or {}).items():
        parser.add_argument(name, action=_Refuse, reason=reason)
    return parser


def _convert_one(option: Option, value: Any) -> Any:
    if isinstance(value, dict | list) or (isinstance(value, bool) and option.type is not str):
        raise ValueError(f'got {value!r}')
    if option.type is int and isinstance(value, float):
        if value != int(value):
            raise ValueError(f'got {value!r}')
        value = int(value)
    value = option.type(str(value) if option.type is str else value)
    if option.choices and value not in option.choices:
        raise ValueError(f'got {value!r}')
    return value


def convert(option: Option, value: Any) -> Any:
    """A YAML value as the command line would have given it; ``ValueError`` if it is of the wrong kind."""
    if value is None and option.default is None:
        return None
    if option.kind == 'switch':
        if not isinstance(value, bool):
            raise ValueError(f'got {value!r}')
        return value
    if option.kind == 'kwargs':
        if not isinstance(value, dict):
            raise ValueError(f'got {value!r}')
        return dict(value)
    if value is None:
        raise ValueError('got null')
    if option.nargs == '?' and option.const is not None and isinstance(value, bool):
        return option.const if value else option.start
    if option.nargs in (None, '?'):
        return _convert_one(option, value)
    values = value if isinstance(value, list) else [value]
    if isinstance(option.nargs, int) and len(values) != option.nargs:
        raise ValueError(f'got {len(values)} values')
    return [_convert_one(option, item) for item in values]


def _wanted(option: Option) -> str:
    kind = {'switch': 'true or false', 'kwargs': 'a mapping'}.get(option.kind) or option.type.__name__
    if option.choices:
        kind = 'one of ' + ', '.join(map(str, option.choices))
    if option.kind == 'value' and option.nargs not in (None, '?'):
        kind = f'a list of {option.nargs if isinstance(option.nargs, int) else "one or more"} values: {kind}'
    return kind


def read_config(path: str | Path, options: Sequence[Option], refused: Mapping[str, str], parser: Parser) -> dict:
    """The checked content of a YAML file, as ``{key: value}``; ends the program with one sentence if it is wrong."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        parser.error(f'--config {path}: {error.strerror or error}')
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, 'problem_mark', None)
        parser.error(f'--config {path}: not valid YAML' + (f' (line {where.line + 1})' if where else ''))
    if content is None:
        return {}
    if not isinstance(content, dict):
        parser.error(f'--config {path}: expected a mapping of option names to values, got {type(content).__name__}')
    known = {option.key: option for option in options if option.key not in ('config', 'print_config')}
    out_of_bounds = {name.lstrip('-').replace('-', '_'): (name, reason) for name, reason in refused.items()}
    values = {}
    for name, value in content.items():
        key = str(name).replace('-', '_')
        if key in out_of_bounds:
            parser.error(f'--config {path}: {key}: {out_of_bounds[key][1]}')
        if key not in known:
            parser.error(f'--config {path}: unknown key {name!r}; did you mean {nearest(key, list(known))[0]!r}?')
        try:
            values[key] = convert(known[key], value)
        except (ValueError, TypeError) as error:
            reason = str(error) if str(error).startswith('got') else f'got {value!r}'
            parser.error(f'--config {path}: {key}: expected {_wanted(known[key])}, {reason}')
    return values


def as_yaml(args: argparse.Namespace | Mapping[str, Any]) -> str:
    """The options as YAML that ``--config`` reads back (``config`` and ``print_config`` themselves left out)."""
    values = dict(args) if isinstance(args, Mapping) else dict(vars(args))
    plain = {key: value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
             for key, value in values.items() if key not in ('config', 'print_config')}
    return yaml.safe_dump(plain, default_flow_style=None, sort_keys=True, width=100)


def parse(
        options: Sequence[Option],
        refused: Mapping[str, str] | None = None,
        argv: Sequence[str] | None = None,
        prog: str | None = None,
        description: str = '',
        find_config: Callable[[str], str | Path] = str,
        print_config: bool = True,
) -> argparse.Namespace:
    """Parse a command line in two stages: the YAML file of ``--config`` sets the defaults, then the line itself.

    Args:
        options: What the script takes; ``--config`` and ``--print-config`` are added.
        refused: Names left out on purpose (``--name``), each with the sentence that says why.
        argv: The line without the program's name; that of the process if None.
        prog: Name of the program in messages.
        description: First lines of ``--help``.
        find_config: Turns what ``--config`` was given into a path (for recipes found by name).
        print_config: Obey ``--print-config`` here; if False, the script does it once more is resolved.

    Returns:
        The namespace, one attribute an option.

    Raises:
        SystemExit: With status 2 and one sentence on stderr for anything that is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    refused = refused or {}
    options = [*CONFIG_OPTIONS, *options]
    parser = build_parser(options, prog, description, refused)
    first = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument('-c', '--config')
    config = first.parse_known_args(argv)[0].config
    if config:
        path = find_config(config)
        parser.set_defaults(**read_config(path, options, refused, parser))
    args, extra = parser.parse_known_args(argv)
    if extra:
        known = [name for option in options for name in (option.name, *option.aliases) if name.startswith('--')]
        word = extra[0].split('=')[0]
        parser.error(f'unknown option {word}; did you mean {nearest(word, known)[0]}?' if word.startswith('-') else
                     f'{word!r} belongs to no option')
    if print_config and args.print_config:
        print(as_yaml(args), end='')
        parser.exit(0)
    return args
