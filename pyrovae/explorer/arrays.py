"""Numbers packed for a page: as they are, or in steps of a range, in base64."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
STEPS = {1: 254, 2: 65_534, 3: (1 << 24) - 2}  # the last number that each size holds is for NaN


def pack(values: Any) -> dict[str, Any]:
    """Numbers as they are: whole ones in 32 bits, others in single precision.

    Args:
        values: of any shape.
    """
    array = np.asarray(values)
    kind = "i4" if array.dtype.kind in "iub" else "f4"
    return {"kind": kind, "shape": list(array.shape), "data": _text(array.astype(f"<{kind}"))}


def quantise(values: Any, size: int) -> dict[str, Any]:
    """Numbers as steps between the least and the greatest of their column.

    The largest error is half a step, (greatest − least)/2^(8·size + 1); NaN stays NaN.

    Args:
        values: shape ``(N, D)``, or ``(N,)`` for one column; finite or NaN.
        size: bytes for each: 1, 2 or 3.
    """
    array = np.asarray(values, dtype=np.float64)
    columns = array.reshape(len(array), -1)
    known = np.isfinite(columns)
    low = np.where(known, columns, np.inf).min(0, initial=np.inf)
    high = np.where(known, columns, -np.inf).max(0, initial=-np.inf)
    low, high = np.where(low > high, 0.0, low), np.where(low > high, 0.0, high)
    step = np.where(high > low, (high - low) / STEPS[size], 1.0)
    whole = np.where(known, np.rint((np.where(known, columns, low) - low) / step), STEPS[size] + 1)
    as_bytes = whole.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :size]
    return {
        "kind": f"q{size}",
        "shape": list(array.shape),
        "low": low.tolist(),
        "step": step.tolist(),
        "data": _text(np.ascontiguousarray(as_bytes)),
    }


def whole(values: Any) -> dict[str, Any]:
    """Whole numbers ≥ 0 exactly, in one byte each, or in two or three if they are larger.

    Args:
        values: shape ``(N,)``.
    """
    array = np.asarray(values, dtype=np.int64)
    size = next(size for size, last in STEPS.items() if array.max(initial=0) <= last)
    as_bytes = array.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :size]
    data = _text(np.ascontiguousarray(as_bytes))
    return {"kind": f"q{size}", "shape": list(array.shape), "low": [0], "step": [1], "data": data}


def _text(array: Array) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
