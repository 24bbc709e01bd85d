#!/usr/bin/env python3
"""Measure the speed and memory of models: ``python benchmark.py --help`` for all options."""

import sys

from timm_asr.engine.commands.benchmark import main
from timm_asr.errors import run_main

if __name__ == '__main__':
    sys.exit(run_main(main, 'benchmark.py'))
