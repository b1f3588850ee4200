"""The workbench: displays, live runs, the shell and the notebook runner."""

__version__ = "0.1.0"
