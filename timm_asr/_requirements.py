"""Says which timm is needed, where an older one is found first (a clone beside the script that runs, say)."""

import re

import timm

MINIMUM = (1, 0, 31)

_found = tuple(int(part) for part in re.findall(r'\d+', timm.__version__)[:3])
if _found < MINIMUM:
    raise ImportError(
        f'timm_asr needs timm {".".join(map(str, MINIMUM))} or newer, and Python found {timm.__version__} in '
        f'{timm.__path__[0]}.')
