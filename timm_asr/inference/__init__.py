"""From the trained network to the one that runs."""
