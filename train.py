#!/usr/bin/env python3
"""Train a model: ``python train.py`` for a first run, ``python train.py --help`` for all options."""

import sys

from timm_asr_cli import main

if __name__ == '__main__':
    sys.exit(main('train', prog='train.py'))
