"""The workbench: displays, live runs, the shell, the notebook runner and the kernel."""

__version__ = "0.1.0"


def banner() -> str:
    """What runs, and on what."""
    import mlx.core as mx

    from .memory import cache_limit, shown

    mlx = mx.__version__  # pyright: ignore[reportAttributeAccessIssue]
    return f"GenMLX {__version__}   mlx {mlx}   {mx.default_device()}   cache up to {shown(cache_limit())}\n"
