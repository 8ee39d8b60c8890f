"""Where a live figure's numbers come from: tables made by Python, and small computations that the page repeats."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dmm.errors import InputError
from dmm.widgets.controls import Settings, Spec

SIGNIFICANT_DIGITS = 5


class Table:
    """Numbers (or texts) that Python computed for every setting of some controls.

    Args:
        array: the leading axes are indexed by the positions of the controls in `by`; the rest is what one setting
            shows. Numbers are rounded to 5 significant digits; NaN and infinities become gaps. Complex numbers gain a
            last axis (real, imaginary).
        by: names of controls, one per leading axis. Without any, the table is the same at every setting.
        bits: 8 packs each number into one byte, for big heat maps: 254 equal steps from the table's least to its
            largest number, zero among them when it lies between. 16 packs it into two bytes, 65,534 steps, for
            positions. Python's `at()` gives the rounded numbers too.

    Raises:
        InputError: bits is not None, 8 or 16, or texts are to be packed.
    """

    def __init__(self, array: ArrayLike, by: Sequence[str] = (), bits: Literal[8, 16] | None = None) -> None:
        values = np.asarray(array)
        if np.iscomplexobj(values):
            values = np.stack([values.real, values.imag], axis=-1)
        if bits not in (None, *CODES):
            raise InputError(f"bits is {bits!r}; allowed: None (5 significant digits), 8 and 16 (one or two bytes)")
        if bits and values.dtype.kind in "US":
            raise InputError(f"bits={bits} packs numbers; this table holds texts")
        self.array: NDArray[Any] = values if values.dtype.kind in "US" else values.astype(np.float64)
        self.by = (by,) if isinstance(by, str) else tuple(by)
        self.bits = bits

    def spec(self, controls: Mapping[str, Spec], name: str) -> Spec:
        for control in self.by:
            if control not in controls:
                raise InputError(f"data[{name!r}]: by names {control!r}; the controls are {sorted(controls)}")
        expected = tuple(len(controls[control]["values"]) for control in self.by)
        if self.array.shape[: len(expected)] != expected:
            raise InputError(
                f"data[{name!r}]: shape {self.array.shape} must begin with {expected}, the sizes of {self.by}"
            )
        shown: Spec = {"kind": "table", "by": list(self.by), "shape": list(self.array.shape)}
        if self.bits:
            return shown | _packed(self.array, self.bits)
        return shown | {"values": [_rounded(value) for value in self.array.reshape(-1).tolist()]}


CODES = {8: "u1", 16: "<u2"}
"""How a packed table writes its codes; the largest code stands for no number."""


def _packed(array: NDArray[np.float64], bits: int) -> Spec:
    """Codes in base64 with the numbers' scale: number = low + code * step."""
    gap = 2**bits - 1
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    step = (high - low) / (gap - 1)
    if low < 0 < high:  # one step less, so that the grid can move until zero lies on it
        step = (high - low) / (gap - 2)
        low = -(math.ceil(-low / step) * step)
    codes = np.full(array.shape, gap, dtype=CODES[bits])
    codes[np.isfinite(array)] = np.clip(np.rint((finite - low) / (step or 1.0)), 0, gap - 1)
    return {"low": low, "step": step, "bits": bits, "bytes": b64encode(codes.tobytes()).decode()}


def _unpacked(source: Spec) -> NDArray[np.float64]:
    codes = np.frombuffer(b64decode(source["bytes"]), dtype=CODES[source["bits"]]).reshape(source["shape"])
    numbers = source["low"] + codes.astype(np.float64) * source["step"]
    return np.where(codes == 2 ** source["bits"] - 1, np.nan, numbers)


@dataclass(frozen=True)
class ScanSource:
    """A small selective scan, computed in the page because its settings are too many for a table.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t with h_{-1} = 0, l tokens and n states.
    A parameter is nested lists of numbers and names of sliders, or the name of another entry of `data`.

    Args:
        u, delta: (l,).
        A: (n,).
        B, C: (l, n), or (n,) for the same at each token.

    Outputs, named "<name>.<output>" in panels and read-outs:
        decay (l, n) = exp(delta_t A); states (l, n); y (l,);
        contributions (l, n): what is left in the last state of each token's input (they add up to it);
        attribution (l,): the same seen by the last output, C_{l-1} . contributions_t (they add up to y_{l-1});
        kept (l,): the share of each token's input that is still there at the end, averaged over the states;
        held (l,): the same times the strength of at most 1 with which it was written, min(1, delta_t);
        last_y (): the last output; first_kept (): the first entry of kept. These two are for read-outs.
    """

    u: Sequence[float | str] | str
    delta: Sequence[float | str] | str
    A: Sequence[float | str] | str
    B: Sequence[Any] | str
    C: Sequence[Any] | str

    OUTPUTS: ClassVar[tuple[str, ...]] = (
        "decay",
        "states",
        "y",
        "contributions",
        "attribution",
        "kept",
        "held",
        "last_y",
        "first_kept",
    )

    def spec(self, controls: Mapping[str, Spec], name: str) -> Spec:
        del controls, name
        parameters = {key: _plain(getattr(self, key)) for key in ("u", "delta", "A", "B", "C")}
        return {"kind": "selective-scan", "outputs": list(self.OUTPUTS), **parameters}


Source = Table | ScanSource


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _rounded(value: float | str) -> float | int | str | None:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _table_values(source: Spec, settings: Settings, controls: Mapping[str, Spec]) -> NDArray[Any]:
    array = _table_array(source)
    return np.asarray(array[tuple(controls[name]["values"].index(settings[name]) for name in source["by"])])


def _table_array(source: Spec) -> NDArray[Any]:
    if "bytes" in source:
        return _unpacked(source)
    kind: type = str if any(isinstance(value, str) for value in source["values"]) else np.float64
    return np.array(source["values"], dtype=kind).reshape(source["shape"])


def _scan_values(source: Spec, known: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    u, delta, A, B, C = (_bound(source[key], known) for key in ("u", "delta", "A", "B", "C"))
    tokens, states = len(u), len(A)
    B, C = np.broadcast_to(B, (tokens, states)), np.broadcast_to(C, (tokens, states))
    decay = np.exp(delta[:, None] * A)
    hidden, rows = np.zeros(states), []
    for t in range(tokens):
        hidden = decay[t] * hidden + delta[t] * B[t] * u[t]
        rows.append(hidden)
    left = np.ones((tokens, states))
    for t in range(tokens - 2, -1, -1):
        left[t] = left[t + 1] * decay[t + 1]
    contributions = left * (delta * u)[:, None] * B
    y, kept = (C * np.stack(rows)).sum(-1), left.mean(-1)
    sequences = {"decay": decay, "states": np.stack(rows), "y": y, "contributions": contributions, "kept": kept}
    return sequences | {
        "held": np.minimum(1, delta) * kept,
        "attribution": contributions @ C[-1],
        "last_y": np.asarray(y[-1]),
        "first_kept": np.asarray(kept[0]),
    }


def _bound(value: Any, known: Mapping[str, Any]) -> NDArray[np.float64]:
    if isinstance(value, str):
        return np.asarray(known[value], dtype=np.float64)
    if isinstance(value, list | tuple):
        return np.array([_bound(entry, known) for entry in value])
    return np.asarray(value, dtype=np.float64)


# A source that needs more than a table look-up: add it here and, under the same name, in widgets.js.
COMPUTED: dict[str, Callable[[Spec, Mapping[str, Any]], dict[str, NDArray[Any]]]] = {"selective-scan": _scan_values}


def values(spec: Spec, settings: Settings) -> dict[str, NDArray[Any]]:
    """All data entries at one setting, by name, and the controls' own values under their names."""
    controls = {control["name"]: control for control in spec["controls"]}
    known: dict[str, Any] = {name: np.asarray(value) for name, value in settings.items()}
    computed = [(name, source) for name, source in spec["data"].items() if source["kind"] != "table"]
    for name, source in spec["data"].items():
        if source["kind"] == "table":
            known[name] = _table_values(source, settings, controls)
    for name, source in computed:
        outputs = COMPUTED[source["kind"]](source, known)
        known |= {f"{name}.{output}": array for output, array in outputs.items()}
    return known


def all_numbers(source: Spec) -> NDArray[np.float64]:
    """Every number of a table's specification, in one row."""
    return _table_array(source).astype(np.float64).ravel()
