"""What every diagnostic does first: read `[chains, draws, *event]`, then look at one element at a time."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

# Elements are taken in blocks of about this many numbers (2 MiB of float64), so that scratch arrays stay in
# cache and memory does not grow with the number of elements.
BLOCK = 2**18


def to_float64(x: ArrayLike) -> np.ndarray:
    """`x` (numpy, MLX or nested lists; real, integer or boolean) as float64."""
    if str(getattr(x, "dtype", "")) == "mlx.core.bfloat16":  # the one MLX type that numpy cannot read
        import mlx.core as mx

        x = x.astype(mx.float32)  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"draws of dtype {array.dtype} have no diagnostics\n"
            "expected: real, integer or boolean numbers\n"
            "try: the real and imaginary parts, or one number per category, on their own"
        )
    return array.astype(np.float64, copy=False)


def to_draws(x: ArrayLike) -> np.ndarray:
    """`x` as float64 `[chains, draws, *event]` with at least one chain and four draws."""
    draws = to_float64(x)
    if draws.ndim < 2:
        raise ValueError(
            f"draws have shape {draws.shape}\n"
            "expected: [chains, draws] or [chains, draws, *event]\n"
            "try: x[None] for a single chain"
        )
    if draws.shape[0] < 1 or draws.shape[1] < 4:
        raise ValueError(
            f"draws have shape {draws.shape}: {draws.shape[0]} chains of {draws.shape[1]} draws\n"
            "expected: [chains, draws, *event] with at least 1 chain and 4 draws in each\n"
            "try: a longer run; if the first two axes are swapped, x.swapaxes(0, 1)"
        )
    return draws


def pooled(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Draws of all chains `[chains * draws, *event]`, and where `[*event]` they are all finite.

    Elements that are not finite are replaced by zeros: the caller overwrites its answer there with NaN.
    """
    draws = to_draws(x)
    draws = draws.reshape(-1, *draws.shape[2:])
    finite = np.isfinite(draws).all(axis=0)
    return np.where(finite, draws, 0.0), np.asarray(finite)


def each_element(x: ArrayLike, statistic: Callable[[np.ndarray], np.ndarray]) -> float | np.ndarray:
    """`statistic` of every event element, which it gets in blocks `[elements, chains, draws]`.

    Elements that are constant or not finite never reach `statistic`; their result is NaN.
    """
    draws = to_draws(x)
    event = draws.shape[2:]
    elements = np.moveaxis(draws.reshape(*draws.shape[:2], int(np.prod(event))), -1, 0)
    result = np.full(len(elements), np.nan)
    step = max(1, BLOCK // (draws.shape[0] * draws.shape[1]))
    for start in range(0, len(elements), step):
        block = np.ascontiguousarray(elements[start : start + step])
        low, high = block.min(axis=(1, 2)), block.max(axis=(1, 2))
        usable = np.isfinite(low) & np.isfinite(high) & (low < high)
        if usable.any():
            result[start : start + step][usable] = statistic(block[usable])
    return result.reshape(event) if event else float(result[0])


def split_chains(draws: np.ndarray) -> np.ndarray:
    """Halves of each chain, `[..., 2 * chains, draws // 2]`; of an odd number the middle draw is dropped."""
    half = draws.shape[-1] // 2
    return np.concatenate([draws[..., :half], draws[..., -half:]], axis=-2)
