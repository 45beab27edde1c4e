"""What to verify: the axes, of which every combination becomes a cell, and rules that leave cells out.

The command line, a plan in YAML and Python all build these models, so a value means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticCustomError

from cgverify.common.devices import NO_DEVICE, device_name
from cgverify.common.errors import suggestion
from cgverify.common.records import EAGER, SDPA, Cell, Checkpoint, RotaryDim
from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES

DTYPES = ("float64", "float32", "bfloat16", "float16")
ATTENTIONS = (EAGER, SDPA)
"""Implementations of attention in transformers that are the same computation, with known bounds."""

MOST_LAYERS = 10_000


def _as_list(value: Any) -> Any:
    """Put a single value into a list, and drop repeated values."""
    if isinstance(value, list | tuple | range):
        return [one for place, one in enumerate(value) if one not in value[:place]]
    return value if value is None else [value]


def _as_layers(value: Any) -> Any:
    """Write out ranges: `[0, "5-7"]` is 0, 5, 6 and 7. `all` is None."""
    if value in ("all", ["all"], None):
        return None
    layers: list[Any] = []
    for part in _as_list(value):
        first, dash, last = part.partition("-") if isinstance(part, str) else ("", "", "")
        last = last if dash else first
        if first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MOST_LAYERS:
            layers += range(int(first), int(last) + 1)
        elif isinstance(part, int) and not isinstance(part, bool) and part >= 0:
            layers.append(part)
        else:
            raise PydanticCustomError("layer", "write all, or numbers from 0 and ranges such as 5-7")
    return sorted(set(layers))


def _as_cases(value: Any) -> Any:
    return list(CASE_KINDS) if value == "all" or value == ["all"] else _as_list(value)


def _known(kind: str, names: Sequence[str]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in names:
            hint = suggestion(str(value), names)
            raise PydanticCustomError("unknown_name", "unknown {kind}: {hint}", {"kind": kind, "hint": hint})
        return value

    return BeforeValidator(check)


def _check_rotary_dim(value: Any) -> Any:
    if value in ("own", "none") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise PydanticCustomError("rotary_dim", "write own, none, or a number")


def _check_device(value: Any) -> Any:
    name = device_name(value) if isinstance(value, str) else None
    if name is None:
        raise PydanticCustomError("device", NO_DEVICE)
    return name


T = TypeVar("T")
Values = Annotated[list[T], BeforeValidator(_as_list)]
"""A list, or a single value instead of a list of one."""
Axis = Annotated[Values[T], Field(min_length=1)]

Number = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]
Count = Annotated[int, Field(ge=1, lt=1 << 31, strict=True)]
Dtype = Annotated[str, _known("dtype", DTYPES)]
Device = Annotated[str, BeforeValidator(_check_device)]
Attention = Annotated[str, _known("attention", ATTENTIONS)]
Cases = Annotated[list[Annotated[str, _known("case", tuple(CASE_KINDS))]], BeforeValidator(_as_cases)]
Rotary = Annotated[RotaryDim, BeforeValidator(_check_rotary_dim)]
RotaryOrOwn = Annotated[RotaryDim | Literal["own"], BeforeValidator(_check_rotary_dim)]
Name = Annotated[str, Field(min_length=1)]
Layers = BeforeValidator(_as_layers)


class PlanModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(PlanModel):
    """How many values of an axis are taken at most."""

    layers: Count | None = None
    """Evenly spread, with the first and the last."""
    candidates: Count | None = None
    dtypes: Count | None = None
    devices: Count | None = None
    rotary_dims: Count | None = None
    attentions: Count | None = None
    cases: Count | None = None
    seeds: Count | None = None
    cells: Count | None = None
    """A plan with more cells for a checkpoint is refused and not cut: nobody would know which cells are missing."""


class Axes(PlanModel):
    """The axes of one checkpoint's cells."""

    candidates: Axis[Name] = ["cgverify"]
    dtypes: Axis[Dtype] = ["float32"]
    devices: Axis[Device] = ["cpu"]
    rotary_dims: Axis[RotaryOrOwn] = []
    """`own` is the checkpoint's own, and so is an empty list."""
    attentions: Axis[Attention] = [EAGER]
    cases: Annotated[Cases, Field(min_length=1)] = [*DEFAULT_CASES]
    seeds: Axis[Number] = [0]
    layers: Annotated[Annotated[list[int], Field(min_length=1)] | None, Layers] = None
    """None is all of them."""
    components: Axis[Name] = []
    """Globs over names such as `blocks.3.attn` or kinds such as `attn.*`. An empty list is all of them."""
    batch_size: Count = 2
    seq_len: Count = 8
    limits: Limits = Limits()

    def within_limits(self) -> Self:
        """Return these axes with at most as many values as `limits` allows. Layers are not cut: see `cells`."""
        axes = ("candidates", "dtypes", "devices", "rotary_dims", "attentions", "cases", "seeds")
        return self.model_copy(update={name: getattr(self, name)[: getattr(self.limits, name)] for name in axes})


@dataclass(frozen=True)
class CheckpointAxes:
    """The axes of one checkpoint."""

    model: str
    """A name, a folder or a hub id."""
    weights: str
    axes: Axes


class Rule(PlanModel):
    """The cells that fit every key of the rule."""

    models: Values[Name] | None = None
    candidates: Values[Name] | None = None
    dtypes: Values[Dtype] | None = None
    devices: Values[Device] | None = None
    rotary_dims: Values[Rotary] | None = None
    attentions: Values[Attention] | None = None
    cases: Cases | None = None
    seeds: Values[Number] | None = None
    layers: Annotated[list[int] | None, Layers] = None
    components: Values[Name] | None = None

    @property
    def is_about_settings(self) -> bool:
        """Whether the rule fits either all cells of a setting or none of them."""
        return all(values is None for values in (self.cases, self.seeds, self.layers, self.components))

    def may_fit(self, checkpoint: Checkpoint) -> bool:
        """Whether the rule may fit cells of a checkpoint. One that is missing here may be a folder elsewhere."""
        names = (checkpoint.name, Path(checkpoint.name).name)
        return self.models is None or any(fnmatchcase(name, pattern) for pattern in self.models for name in names)

    def fits(self, cell: Cell) -> bool:
        """Whether a cell fits every key. A model has the name that cells give it: a folder's is its last part."""
        pairs = (
            (self.dtypes, cell.dtype),
            (self.devices, cell.device),
            (self.rotary_dims, cell.rotary_dim),
            (self.attentions, cell.attention),
            (self.cases, cell.case),
            (self.seeds, cell.seed),
            (self.layers, cell.layer),
        )
        globs = (
            (self.models, (cell.model,)),
            (self.candidates, (cell.candidate,)),
            (self.components, (cell.component, cell.kind)),
        )
        return all(values is None or value in values for values, value in pairs) and all(
            patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
            for patterns, names in globs
        )


def describe_error(error: ErrorDetails, place: str) -> str:
    """Return a sentence that says which value is wrong, and why.

    Args:
        place: where the user wrote the value.
    """
    reason = error["msg"][0].lower() + error["msg"][1:]
    value = "" if isinstance(error["input"], dict | list) else f" {error['input']!r}"
    return f"{place}{value}: {reason}{'' if reason.endswith(('?', '.')) else '.'}"
