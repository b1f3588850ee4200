"""Machine code from MLX graphs, through LLVM: what README.md in this folder explains.

Needs llvmlite, the extra ``native``; nothing here imports it before it is used.
"""
