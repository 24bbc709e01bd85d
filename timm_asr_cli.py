"""The console command ``timm-asr``, and what ``python train.py`` and its neighbours call.

``import timm_asr`` registers every model with timm, which takes seconds. Help needs no model: for ``--help`` the
package is put in place without running its ``__init__``, so that the options alone are imported.
"""

import sys
from importlib.util import find_spec, module_from_spec


def main(*command: str, prog: str = 'timm-asr') -> int:
    """Run the command that the line names, or the one given here; returns the exit status."""
    words = [*command, *sys.argv[1:]]
    if not words or {'-h', '--help'} & set(words[:2]):
        spec = find_spec('timm_asr')
        assert spec is not None
        sys.modules.setdefault('timm_asr', module_from_spec(spec))
    from timm_asr.engine.commands import dispatch, run_command
    return run_command(command[0], words[1:], prog) if command else dispatch(words, prog)


if __name__ == '__main__':
    sys.exit(main())
