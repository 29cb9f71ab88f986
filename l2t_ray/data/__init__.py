"""Images as memory-mapped Arrow files, noise, splits, and batches that any round can be asked for again."""
