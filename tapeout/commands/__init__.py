"""The commands of the command line, one per file; each has `register(app)`."""
