"""The device and its memory, as far as the backend says."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def memory_report() -> dict[str, Any]:
    """Bytes in use, in the cache and at the peak, and facts of the device; None for what it does not say.

    ``reset_peak_memory`` sets MLX's peak to 0 and not to what is active, so the peak is the larger of the two.

    >>> report = memory_report()
    >>> report["peak_bytes"] >= report["active_bytes"]
    True
    """
    active = mx.get_active_memory()
    info = mx.device_info()
    return {
        "active_bytes": active,
        "cache_bytes": mx.get_cache_memory(),
        "peak_bytes": max(mx.get_peak_memory(), active),
        "device": str(mx.default_device()),
        "device_name": info.get("device_name"),
        "memory_bytes": info.get("memory_size", info.get("total_memory")),
        "working_set_bytes": info.get("max_recommended_working_set_size"),
    }
