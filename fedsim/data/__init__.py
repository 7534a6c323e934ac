"""Where examples come from and which client holds which: sources, partitions, the federation they make."""
