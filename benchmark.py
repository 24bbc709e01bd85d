#!/usr/bin/env python3
"""Measure the speed and memory of models: ``python benchmark.py --help`` for all options."""

import sys

from timm_asr_cli import main

if __name__ == '__main__':
    sys.exit(main('benchmark', prog='benchmark.py'))
