"""Traces in files: the choices and the score; the model itself is code, and is given again on loading."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import mlx.core as mx

from genmlx import archive
from genmlx.choicemap import from_items
from genmlx.errors import GenError, UsageError, name_of
from genmlx.gfi import Call
from genmlx.masked import Masked
from genmlx.trace import Trace

_FORMAT = "genmlx trace 1"


def save_trace(trace: Trace, path: str | os.PathLike) -> None:
    """Write a trace's choices and score to one file (``.npz`` with JSON). A write that fails leaves an old file alone.

    >>> import tempfile
    >>> from genmlx import gen, load_trace, normal, save_trace, trace
    >>> @gen
    ... def model(mu):
    ...     return trace("x", normal(mu, 1.0))
    >>> tr = model(0.5).simulate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_trace(tr, folder + "/run.npz")
    ...     again = load_trace(folder + "/run.npz", model(0.5))
    >>> again.choices == tr.choices
    True
    """
    if not isinstance(trace, Trace):
        raise UsageError(f"save_trace was given a {type(trace).__name__}", expected="one trace: of a batch, tr[i]")
    choices = list(trace.choices.items())
    if any(isinstance(value, Masked) for _, value in choices):
        raise UsageError("a choice that only some lanes have cannot be saved", gen_fn=trace.gen_fn)
    head = {"model": name_of(trace.gen_fn), "addresses": [address for address, _ in choices]}
    arrays = {f"choice{i}": mx.array(value) for i, (_, value) in enumerate(choices)}
    archive.write(path, _FORMAT, head, {**arrays, "score": trace.score})


def load_trace(path: str | os.PathLike, call: Call, strict: bool = True) -> Any:
    """The trace of a call with the choices that ``save_trace`` wrote.

    Raises when the choices do not fit the model, and when its score is no longer what it was: the model, its arguments
    or its parameters have changed since. ``strict=False`` accepts another score.
    """
    if not isinstance(call, Call):
        raise UsageError(f"load_trace was given {name_of(call)}", expected="a call: the model with its arguments")
    try:
        head, arrays = archive.read(path, _FORMAT)
        addresses = [tuple(address) for address in head["addresses"]]
        choices = from_items((address, arrays[f"choice{i}"]) for i, address in enumerate(addresses))
        score = arrays["score"].item()
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        expected = "a file written by save_trace"
        raise archive.unreadable(path, "a saved trace", expected, "save it again", error) from None
    call.assess(choices)  # every choice must be there
    trace = call.generate(choices).trace
    found = trace.score.item()
    if strict and not (found == score or abs(found - score) <= 1e-4 * max(1.0, abs(score))):
        raise GenError(
            f"{os.fspath(path)} was saved with score {score:.6g}, which is now {found:.6g}",
            gen_fn=call.gen_fn,
            expected="the model, arguments and parameters that made it",
            hint="load_trace(path, call, strict=False) to take the choices as they are",
        )
    return trace
