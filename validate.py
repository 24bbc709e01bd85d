#!/usr/bin/env python3
"""Measure the accuracy of a model: ``python validate.py --help`` for all options."""

import sys

from timm_asr_cli import main

if __name__ == '__main__':
    sys.exit(main('validate', prog='validate.py'))
