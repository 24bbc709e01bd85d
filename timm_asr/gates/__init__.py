"""One gate a file, the table of gates, pooling, and units that a stage shares."""
