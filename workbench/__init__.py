"""The workbench: displays, live runs, the shell and the notebook runner."""
