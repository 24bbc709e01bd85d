"""What a test of any of the scripts' flag tables checks."""

from typing import Any


def check_flags(options: list, kept: str, ours: set[str], defaults: dict[str, Any], aliases: dict[str, str]) -> None:
    """A table has just these flags, each with a help text, timm's default where one is given, and timm's alias."""
    assert {option.name for option in options} == set(kept.split()) | ours
    for option in options:
        assert option.help
        if option.key in defaults:
            assert option.start == defaults[option.key], option.name
        assert option.aliases == ((aliases[option.name],) if option.name in aliases else ())
