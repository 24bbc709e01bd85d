"""``python -m timm_asr COMMAND ...``, the same as ``timm-asr COMMAND ...``."""

import sys

from .engine.commands import dispatch


def main() -> int:
    """Run the command that the line names; returns the exit status."""
    return dispatch(sys.argv[1:], 'python -m timm_asr')


if __name__ == '__main__':
    sys.exit(main())
