"""Many chains on a GPU, one on each thread: the graph of a density as text for ``mx.fast``."""
