#!/usr/bin/env python3
"""Measure the accuracy of a model: ``python validate.py --help`` for all options."""

import sys

from timm_asr.engine.commands.validate import main
from timm_asr.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main, 'validate.py'))
