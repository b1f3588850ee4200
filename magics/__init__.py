"""The IPython magics of GenMLX."""
