"""Declared command line flags: one ``Option`` a flag, settable on the command line and, through ``--config``, in YAML.

A command declares a list of options and a table of refused names; everything else is done here:

    OPTIONS = [
        *group('Training', value('--lr', float, 0.1, 'learning rate'), switch('--amp', 'mixed precision')),
        *group('Output', value('--output', str, '', 'folder to write to', '-o', metavar='FOLDER'))]
    REFUSED = {'--fuser': 'the JIT fusers are gone from PyTorch; use --torchcompile'}
    args = parse(OPTIONS, REFUSED, argv, prog='timm-asr train')
"""

import argparse
import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

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


def value(name: str, type: Callable[[str], Any], default: Any, help: str, *aliases: str, **more: Any) -> Option:
    """An option that takes a value, or several (``nargs``)."""
    return Option(name, aliases, type=type, default=default, help=help, **more)


def switch(name: str, help: str, **more: Any) -> Option:
    """An option that is on or off; off unless given."""
    return Option(name, kind='switch', help=help, **more)


def pairs(name: str, help: str, **more: Any) -> Option:
    """An option that takes ``KEY=VALUE`` pairs."""
    return Option(name, kind='kwargs', default={}, help=help, **more)


def group(heading: str, *options: Option) -> list[Option]:
    """The options under a heading of ``--help``."""
    return [replace(option, group=heading) for option in options]


CONFIG_OPTIONS = [
    Option('--config', ('-c',), metavar='FILE', help='YAML file that sets any of these options; the command line wins'),
    Option('--print-config', kind='switch', help='print everything as resolved, as YAML, and stop'),
]


class Parser(argparse.ArgumentParser):
    """An argument parser whose error is one line, without the page of usage that 150 flags would make."""

    where = ''  #: what is being read, where it is not the command line

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {self.where}{message}\n')


class _Pairs(argparse.Action):
    """``a=1 b=x`` as a dictionary; values are Python literals where they can be, text otherwise."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        pairs: dict[str, Any] = {}
        for word in values:
            key, equals, value = word.partition('=')
            if not equals:
                parser.error(f'{self.option_strings[0]}: expected KEY=VALUE, got {word!r}')
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


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
        target.add_argument(*names, nargs='*', action=_Pairs, **(keywords | {'metavar': 'KEY=VALUE'}))
        return
    if option.nargs is not None:
        keywords['nargs'] = option.nargs
    if option.const is not None:
        keywords['const'] = option.const
    target.add_argument(*names, type=option.type, choices=option.choices, **keywords)


def build_parser(options: Sequence[Option], prog: str | None = None, description: str = '',
                 refused: Mapping[str, str] | None = None) -> Parser:
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


def words_of(option: Option, value: Any) -> list[str]:
    """A YAML value as words of a command line, for the parser to judge as it judges a line.

    ``true`` is a switch's own name, ``false`` its ``--no-`` name, a list several values, a mapping ``KEY=VALUE``
    pairs. The default of an option needs no words.

    Raises:
        ValueError: No words say this: a switch that is neither true nor false, a list for a single value.
    """
    bare = option.nargs == '?' and option.const is not None  # a name that may stand alone: true and false in YAML
    if (value == option.start and type(value) is type(option.start)) or (bare and value is False):
        return []
    if option.kind == 'switch':
        if not isinstance(value, bool):
            raise ValueError(f'expected true or false, got {value!r}')
        negative = [] if option.name.startswith('--no-') else [f'--no-{option.name[2:]}']
        return [option.name] if value else negative
    if option.kind == 'kwargs':
        if not isinstance(value, dict):
            raise ValueError(f'expected a mapping, got {value!r}')
        return [option.name, *(f'{key}={item!r}' for key, item in value.items())]
    if bare and value is True:
        return [option.name]
    many = option.nargs not in (None, '?')
    if value is None or isinstance(value, dict) or (isinstance(value, list) and not many):
        raise ValueError(f'expected {option.type.__name__}, got {repr(value) if value is not None else "null"}')
    values = [str(item) for item in (value if isinstance(value, list) else [value])]
    if not option.name.startswith('-'):
        return values
    return [option.name, *values] if many else [f'{option.name}={values[0]}']


def read_config(path: str | Path, options: Sequence[Option], refused: Mapping[str, str], parser: Parser) -> dict:
    """The content of a YAML file, as ``{key: value}``; ends the program with one sentence if it is wrong."""
    try:
        text = Path(path).read_text(encoding='utf-8')
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
            parser.error('aliases (*name) are not read: write the value out')  # a few of them make gigabytes
        content = yaml.safe_load(text)
    except OSError as error:
        parser.error(error.strerror or str(error))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        where = getattr(error, 'problem_mark', None)
        parser.error('not valid YAML' + (f' (line {where.line + 1})' if where else ''))
    if content is None:
        return {}
    if not isinstance(content, dict):
        parser.error(f'expected a mapping of option names to values, got {type(content).__name__}')
    known = {option.key: option for option in options if option.key not in ('config', 'print_config')}
    out_of_bounds = {name.lstrip('-').replace('-', '_'): reason for name, reason in refused.items()}
    words: list[str] = []
    for name, value in content.items():
        key = str(name).replace('-', '_')
        if key in out_of_bounds:
            parser.error(f'{key}: {out_of_bounds[key]}')
        if key not in known:
            parser.error(f'unknown key {name!r}; did you mean {nearest(key, list(known))[0]!r}?')
        try:
            said = words_of(known[key], value)
            words = words + said if known[key].name.startswith('-') else said + words
        except ValueError as error:
            parser.error(f'{key}: {error}')
    read = vars(parser.parse_args(words))
    return {key: read[key] for key in (str(name).replace('-', '_') for name in content)}


def plain_options(args: argparse.Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The options as plain data, which YAML and ``torch.load(weights_only=True)`` read anywhere."""
    return {key: value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)
            for key, value in (args if isinstance(args, Mapping) else vars(args)).items()}


def as_yaml(args: argparse.Namespace | Mapping[str, Any]) -> str:
    """The options as YAML that ``--config`` reads back (``config`` and ``print_config`` themselves left out)."""
    plain = {key: value for key, value in plain_options(args).items() if key not in ('config', 'print_config')}
    return yaml.safe_dump(plain, default_flow_style=None, sort_keys=True, width=100)


def parse(options: Sequence[Option], refused: Mapping[str, str] | None = None, argv: Sequence[str] | None = None,
          prog: str | None = None, description: str = '', find_config: Callable[[str], str | Path] = str,
          print_config: bool = True) -> argparse.Namespace:
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
        parser.where = f'--config {config}: '
        parser.set_defaults(**read_config(find_config(config), options, refused, parser))
        parser.where = ''
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
