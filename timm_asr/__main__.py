"""``python -m timm_asr COMMAND ...``: the scripts, also when installed."""

import importlib
import sys

from .engine.recipes import list_recipes
from .errors import nearest, run_main

COMMANDS = {
    'train': 'train a model; without arguments, the recipe digits',
    'validate': 'measure the accuracy of a model',
    'benchmark': 'measure the speed and memory of models',
    'experiment': 'train arms over seeds and say what their differences are worth',
    'export': 'write fused weights as timm loads them, as ONNX, or as a program of torch.export',
    'freeze': "replace a trained network's gates by constants, and say what that costs",
    'publish': 'publish such a folder on the Hugging Face Hub',
    'run': "run another program's script with the models of this package registered",
}


def main() -> int:
    """Run the command that the line names; returns the exit status."""
    words = sys.argv[1:]
    if not words or words[0] in ('-h', '--help'):
        print('usage: python -m timm_asr COMMAND [options]\n')
        for name, text in COMMANDS.items():
            print(f'  {name:<10} {text}')
        print(f'\nRecipes for train --config: {", ".join(list_recipes())}')
        return 0 if words else 2
    command, *rest = words
    if command not in COMMANDS:
        print(f'timm_asr: error: unknown command {command!r}; did you mean {nearest(command, list(COMMANDS))[0]!r}?',
              file=sys.stderr)
        return 2
    module = importlib.import_module(f'timm_asr.engine.commands.{command}')
    return run_main(lambda: module.main(rest), f'timm_asr {command}')


if __name__ == '__main__':
    sys.exit(main())
