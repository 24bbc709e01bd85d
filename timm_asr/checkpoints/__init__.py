"""Open a checkpoint, a folder or a name of the Hub."""
