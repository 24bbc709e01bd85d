"""Declared command line flags: one ``Option`` a flag, settable on the command line and, through ``--config``, in YAML.

    OPTIONS = [
        *group('Training', value('--lr', float, 0.1, 'learning rate'), switch('--amp', 'mixed precision')),
        *group('Output', value('--output', str, '', 'folder to write to', '-o', metavar='FOLDER'))]
    args = parse(OPTIONS, {'--fuser': 'is gone from PyTorch'}, argv, prog='timm-asr train')
"""

import argparse
import ast
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import BadInput, nearest
from .recipes import find_recipe


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
            pairs[key] = value
            with suppress(ValueError, SyntaxError):
                pairs[key] = ast.literal_eval(value)
        setattr(namespace, self.dest, pairs)


@dataclass(frozen=True)
class Option:
    """One flag: its long name with the dashes (a bare one for a positional argument), the keywords of ``add_argument``,
    other spellings (``-b``), and the heading under which ``--help`` lists it.
    """

    name: str
    keywords: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    group: str = 'General'

    @property
    def key(self) -> str:
        """Name in the parsed namespace and in YAML."""
        return self.name.lstrip('-').replace('-', '_')

    @property
    def start(self) -> Any:
        """The default, as a new object where it is mutable."""
        return copy(self.keywords['default'])

    def but(self, **changes: Any) -> 'Option':
        """The same with other fields, or other keywords of ``add_argument``."""
        own = {name: changes.pop(name) for name in ('aliases', 'group') if name in changes}
        return replace(self, keywords={**self.keywords, **changes}, **own)


def value(name: str, type: Callable[[str], Any], default: Any, help: str, *aliases: str, **more: Any) -> Option:
    """An option that takes a value, or several (``nargs``); the metavar is N, X or NAME by the type if unset."""
    metavar = None if 'choices' in more else {int: 'N', float: 'X', str: 'NAME'}.get(type)  # type: ignore[call-overload]
    return Option(name, {'metavar': metavar, 'type': type, 'default': default, 'help': help}, aliases).but(**more)


def switch(name: str, help: str, *aliases: str, **more: Any) -> Option:
    """An option that is on or off, off unless given; ``--no-NAME`` undoes what a YAML file says."""
    # A flag that is itself a negation keeps its one spelling.
    action = 'store_true' if name.startswith('--no-') else argparse.BooleanOptionalAction
    return Option(name, {'action': action, 'default': False, 'help': help}, aliases).but(**more)


def pairs(name: str, help: str) -> Option:
    """An option that takes ``KEY=VALUE`` pairs, a mapping in YAML."""
    return Option(name, {'action': _Pairs, 'nargs': '*', 'default': {}, 'metavar': 'KEY=VALUE', 'help': help})


def group(heading: str, *options: Option) -> list[Option]:
    """The options under a heading of ``--help``."""
    return [option.but(group=heading) for option in options]


CONFIG_OPTIONS = [
    value('--config', str, None, 'YAML file that sets any of these options; the command line wins', '-c',
          metavar='FILE'),
    switch('--print-config', 'print everything as resolved, as YAML, and stop'),
]
#: Options that the ``args.yaml`` of an older run may have.
_GONE = ('fuse_every', 'log_tensorboard')


def build_parser(options: Sequence[Option], prog: str | None = None, description: str = '') -> Parser:
    """The ``argparse`` parser of these options, grouped by heading."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    groups: dict[str, Any] = {}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        keywords = {**option.keywords, 'default': option.start, 'help': option.keywords['help'].replace('%', '%%')}
        if option.name.startswith('-'):
            keywords['dest'] = option.key
        if 'action' not in keywords and option.start not in (None, '', []):
            keywords['help'] += f' (default: {option.start})'
        groups[option.group].add_argument(option.name, *option.aliases, **keywords)
    return parser


def _words(option: Option, value: Any) -> list[str]:
    """A YAML value as words of a command line, for argparse to judge as it judges a line; none for the default."""
    action, many = option.keywords.get('action'), option.keywords.get('nargs') not in (None, '?')
    switch = action not in (None, _Pairs)
    if value == option.start and type(value) is type(option.start):
        return []
    if isinstance(value, bool) and (switch or 'const' in option.keywords):
        return [option.name] if value else [f'--no-{option.name[2:]}'] * switch
    if isinstance(value, dict) and action is _Pairs:
        value = [f'{key}={item!r}' for key, item in value.items()]
    value = '' if value is None else value
    values = [str(item) for item in (value if isinstance(value, list) and many else [value])]
    if not option.name.startswith('-'):
        return values
    return [f'{option.name}={values[0]}'] if len(values) == 1 else [option.name, *values]


def _read_config(path: Path, options: Sequence[Option], parser: Parser, refuse: Callable[..., bool]) -> dict:
    """The content of a YAML file, as ``{key: value}``; ends the program with one sentence if it is wrong."""
    from ..checkpoints.read import read_yaml  # imports torch, which help does without
    try:
        content = read_yaml(path)
    except BadInput as error:
        parser.error(str(error))
    known = {option.key: option for option in options if option not in CONFIG_OPTIONS}
    words: list[str] = []
    keys = []
    for name, value in content.items():
        key = str(name).replace('-', '_')
        if key in _GONE or refuse('--' + key.replace('_', '-'), value):
            continue
        if key not in known:
            parser.error(f'unknown key {name!r}; did you mean {nearest(key, list(known))[0]!r}?')
        if isinstance(value, list | dict) and known[key].keywords.get('nargs') in (None, '?'):
            parser.error(f'{key}: expected one value, got {value!r}')
        said = _words(known[key], value)
        words = words + said if known[key].name.startswith('-') else said + words
        keys.append(key)
    positional = [action for action in parser._actions if not action.option_strings]
    for action in positional:  # it may stand on the line alone
        action.required = False
    read = vars(parser.parse_args(words))
    for action in positional:
        action.required = action.dest not in keys
    return {key: read[key] for key in keys}


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as plain data, which YAML and ``torch.load(weights_only=True)`` read anywhere."""
    return {key: value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)
            for key, value in options.items()}


def as_read(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they come back out of ``args.yaml``: lists for tuples."""
    return yaml.safe_load(as_yaml(options))


def as_yaml(options: Mapping[str, Any]) -> str:
    """The options as YAML that ``--config`` reads back (``config`` and ``print_config`` themselves left out)."""
    plain = {key: value for key, value in plain_options(options).items() if key not in ('config', 'print_config')}
    return yaml.safe_dump(plain, default_flow_style=None, sort_keys=True, width=100)


def parse(options: Sequence[Option], refused: Mapping[str, str] | None = None, argv: Sequence[str] = (),
          prog: str | None = None, description: str = '', print_config: bool = True) -> argparse.Namespace:
    """The namespace of a command line: the YAML file of ``--config`` sets the defaults, then comes the line itself.

    ``argv`` is the line without the program's name. ``refused`` has the names that are
    left out on purpose (``--name``, ``--names-*``), each with the sentence that says why. Without ``print_config``
    the script obeys ``--print-config`` itself, once more is resolved. What is wrong ends in SystemExit with status 2
    and one sentence; ``BadInput``: ``--config`` names neither a file nor a recipe.
    """
    options = [*CONFIG_OPTIONS, *options]
    parser = build_parser(options, prog, description)

    def refuse(name: str, value: Any = True) -> bool:
        reasons = [reason for pattern, reason in (refused or {}).items() if fnmatchcase(name, pattern)]
        # In a file, patterns stand for settings of what another key turns on: timm writes all of them.
        if reasons and (value is True or (value and name in refused)):  # type: ignore[operator]
            parser.error(f'{name}: {reasons[0]}')
        return bool(reasons)

    for word in argv:
        refuse(word.split('=')[0])
    first = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument('-c', '--config')
    config = first.parse_known_args(argv)[0].config
    if config:
        parser.where = f'--config {config}: '
        parser.set_defaults(**_read_config(find_recipe(config), options, parser, refuse))
        parser.where = ''
    args, extra = parser.parse_known_args(argv)
    if extra:
        known = [name for option in options for name in (option.name, *option.aliases) if name.startswith('--')]
        word = extra[0].split('=')[0]
        parser.error(f'unknown option {word}; did you mean {nearest(word, known)[0]}?' if word.startswith('-') else
                     f'{word!r} belongs to no option')
    if print_config and args.print_config:
        print(as_yaml(vars(args)), end='')
        parser.exit(0)
    return args
