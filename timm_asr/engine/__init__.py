"""The engine behind ``train.py``, ``validate.py`` and ``benchmark.py``: options, data, loop, checkpoints, folding."""
