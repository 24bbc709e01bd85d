"""Experiments: arms, seeds, runs that can be stopped at any moment, and what their differences are worth."""
