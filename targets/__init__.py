"""The built-in targets; each is a plugin found through the entry-point group `tapeout.targets`."""
