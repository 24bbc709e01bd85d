#!/usr/bin/env python3
"""Train a model: ``python train.py`` for a first run, ``python train.py --help`` for all options."""

import sys

from timm_asr.engine.errors import run_main
from timm_asr.engine.train import main

if __name__ == '__main__':
    sys.exit(run_main(main, 'train.py'))
