#!/usr/bin/env python3
"""Train a model: ``python train.py`` for a first run, ``python train.py --help`` for all options."""

import sys

from timm_asr.engine.commands.train import main
from timm_asr.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main, 'train.py'))
