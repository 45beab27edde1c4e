"""A plan from a YAML file, such as those under `configs/`.

    models: [codegen-350M, {model: ./mine, weights: random}]
    dtypes: [float32, bfloat16]
    limits: {layers: 3}
    exclude:
      - {models: "*-16B", cases: backward}

| key | |
|---|---|
| `models` | names of `cgverify models`, folders, hub ids; the only key that must be there |
| `weights` | `auto`, `pretrained`, `random` or `random:SEED`, for the models that say nothing else |
| `candidates`, `dtypes`, `devices`, `seeds` | axes: every combination becomes a cell |
| `rotary_dims`, `cases` | axes; `own` is the checkpoint's rotary_dim, `all` is every case |
| `layers`, `components` | axes: `all`, or numbers and ranges such as `5-7`; globs over names or kinds |
| `batch_size`, `seq_len` | of the inputs |
| `limits` | how many values of an axis are taken at most, from the first on; layers evenly, with both ends. `cells` \
refuses a plan with more cells for a checkpoint |
| `include` | more products: each has keys as above, and takes those that it does not have from the top |
| `exclude` | rules: a cell that fits every key of one of them is left out. Text is a glob |

What is not given is as in `cgverify all-components`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from cgverify.common.errors import ConfigError, NothingToVerifyError
from cgverify.common.records import Cell, Checkpoint, RotaryDim
from cgverify.plan.cells import CASE_KINDS, DEFAULT_CASES, DEVICES, DTYPES, Axes, CheckpointAxes

MOST_LAYERS = 10_000


def _listed(value: Any) -> Any:
    """A single value stands for a list of it; a value that is there twice counts once."""
    if isinstance(value, list):
        return [one for place, one in enumerate(value) if one not in value[:place]]
    return value if value is None else [value]


def _layers(value: Any) -> Any:
    """`[0, "5-7"]` is 0, 5, 6 and 7; `all` is no list."""
    if value == "all" or value is None:
        return None
    layers: list[Any] = []
    for part in _listed(value):
        first, dash, last = part.partition("-") if isinstance(part, str) else ("", "", "")
        last = last if dash else first
        if first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MOST_LAYERS:
            layers += range(int(first), int(last) + 1)
        elif isinstance(part, int) and not isinstance(part, bool) and part >= 0:
            layers.append(part)
        else:
            raise PydanticCustomError("layer", "write all, or numbers from 0 and ranges such as 5-7")
    return sorted(set(layers))


def _known(kind: str, names: Sequence[str]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in names:
            close = get_close_matches(str(value), names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
            raise PydanticCustomError("unknown_name", "unknown {kind}: {hint}", {"kind": kind, "hint": hint})
        return value

    return BeforeValidator(check)


def _cases(value: Any) -> Any:
    return list(CASE_KINDS) if value == "all" or value == ["all"] else _listed(value)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "a number is wanted here")
    return value


def _rotary_dim(value: Any) -> Any:
    if value in ("own", "none") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise PydanticCustomError("rotary_dim", "write own, none, or a number")


Number = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, lt=1 << 63, strict=True)]
Count = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, lt=1 << 31, strict=True)]
Dtype = Annotated[str, _known("dtype", DTYPES)]
Device = Annotated[str, _known("device", DEVICES)]
Case = Annotated[str, _known("case", tuple(CASE_KINDS))]
Rotary = Annotated[RotaryDim | Literal["own"], BeforeValidator(_rotary_dim)]
Name = Annotated[str, Field(min_length=1)]
Layers = Annotated[list[int] | None, BeforeValidator(_layers)]
_LIST = BeforeValidator(_listed)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Part):
    """A checkpoint, with its own `weights` if need be."""

    model: Name
    weights: Name | None = None


def _model(value: Any) -> Any:
    if isinstance(value, str):
        return {"model": value}
    if isinstance(value, Mapping | Model):
        return value
    raise PydanticCustomError("model", "write a name, or {model: NAME, weights: random}")


class Limits(_Part):
    """How many values of an axis are taken at most."""

    layers: Count | None = None
    candidates: Count | None = None
    dtypes: Count | None = None
    devices: Count | None = None
    rotary_dims: Count | None = None
    cases: Count | None = None
    seeds: Count | None = None
    cells: Count | None = None
    """A plan with more of them for a checkpoint is refused, not cut: nobody would know what had been left out."""


class AxesProduct(_Part):
    """Axes of which every combination becomes a cell."""

    models: Annotated[list[Annotated[Model, BeforeValidator(_model)]], _LIST, Field(min_length=1)]
    weights: Name = "auto"
    candidates: Annotated[list[Name], _LIST, Field(min_length=1)] = ["cgverify"]
    dtypes: Annotated[list[Dtype], _LIST, Field(min_length=1)] = ["float32"]
    devices: Annotated[list[Device], _LIST, Field(min_length=1)] = ["cpu"]
    rotary_dims: Annotated[list[Rotary], _LIST, Field(min_length=1)] = ["own"]
    cases: Annotated[list[Case], BeforeValidator(_cases), Field(min_length=1)] = [*DEFAULT_CASES]
    seeds: Annotated[list[Number], _LIST, Field(min_length=1)] = [0]
    layers: Annotated[Annotated[list[int], Field(min_length=1)] | None, BeforeValidator(_layers)] = None
    components: Annotated[list[Name], _LIST, Field(min_length=1)] = []
    batch_size: Count = 2
    seq_len: Count = 8
    limits: Limits = Limits()

    def requests(self) -> list[CheckpointAxes]:
        """A product a checkpoint."""
        axes = Axes(
            candidates=self.candidates[: self.limits.candidates],
            dtypes=self.dtypes[: self.limits.dtypes],
            devices=self.devices[: self.limits.devices],
            rotary_dims=self.rotary_dims[: self.limits.rotary_dims],
            cases=self.cases[: self.limits.cases],
            layers=self.layers,
            most_layers=self.limits.layers,
            components=self.components,
            seeds=self.seeds[: self.limits.seeds],
            batch_size=self.batch_size,
            seq_len=self.seq_len,
        )
        return [CheckpointAxes(entry.model, entry.weights or self.weights, axes) for entry in self.models]


class Rule(_Part):
    """Which cells: those that fit every key."""

    models: Annotated[list[Name], _LIST] | None = None
    candidates: Annotated[list[Name], _LIST] | None = None
    dtypes: Annotated[list[Dtype], _LIST] | None = None
    devices: Annotated[list[Device], _LIST] | None = None
    rotary_dims: Annotated[list[Annotated[RotaryDim, BeforeValidator(_rotary_dim)]], _LIST] | None = None
    cases: Annotated[list[Case], BeforeValidator(_cases)] | None = None
    seeds: Annotated[list[Number], _LIST] | None = None
    layers: Layers = None
    components: Annotated[list[Name], _LIST] | None = None

    @property
    def of_settings(self) -> bool:
        """Whether the rule takes a setting of a checkpoint with all cells in it, or none of them."""
        return all(values is None for values in (self.cases, self.seeds, self.layers, self.components))

    def means(self, checkpoint: Checkpoint) -> bool:
        """Whether the rule may concern a checkpoint: one that is not here may turn out to be a folder."""
        names = (checkpoint.name, Path(checkpoint.name).name)
        return self.models is None or any(fnmatchcase(name, pattern) for pattern in self.models for name in names)

    def fits(self, cell: Cell) -> bool:
        """Whether a cell is meant. A model is called what cells call it: a folder by its last part."""
        pairs = (
            (self.dtypes, cell.dtype),
            (self.devices, cell.device),
            (self.rotary_dims, cell.rotary_dim),
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


class SweepConfig(AxesProduct):
    """What a file says: a product, further ones, and rules that leave cells out."""

    include: Annotated[list[dict[str, Any]], _LIST] = []
    exclude: Annotated[list[Rule], _LIST] = []

    def all_requests(self) -> list[CheckpointAxes]:
        return [request for one in (self, *self.further()) for request in one.requests()]

    def further(self) -> list[AxesProduct]:
        """The products of `include`, completed from the top."""
        top = {name: getattr(self, name) for name in self.model_fields_set & set(AxesProduct.model_fields)}
        products = []
        for place, entry in enumerate(self.include):
            try:
                products.append(AxesProduct.model_validate({**top, **entry}))
            except ValidationError as error:
                raise _told(error, ("include", place)) from None
            if "limits" in entry and products[-1].limits.cells is not None:
                raise ConfigError(f"include[{place}].limits.cells: it is of the whole plan, so say it at the top.")
        return products

    def excluded(self, cell: Cell) -> bool:
        return any(rule.fits(cell) for rule in self.exclude)

    def setting_excluded(self, cell: Cell) -> bool:
        """Whether everything is left out that shares a cell's checkpoint and setting."""
        return any(rule.of_settings and rule.fits(cell) for rule in self.exclude)

    def require_sense(
        self, planned: Sequence[Cell], before: Sequence[Cell], unknown: Collection[Checkpoint] = ()
    ) -> None:
        """Whether a plan came out as this file means it.

        Args:
            planned: the cells.
            before: the cells without `exclude`.
            unknown: the checkpoints whose cells are not known here; of them a rule may mean some that nobody sees.

        Raises:
            ConfigError: a rule that leaves nothing out, or more cells than `limits` allows.
        """
        for place, rule in enumerate(self.exclude):
            if not any(rule.fits(cell) for cell in before) and not any(rule.means(one) for one in unknown):
                raise ConfigError(f"exclude[{place}] fits no cell of the plan: correct it, or leave it out.")
        if self.limits.cells is not None:
            counted: dict[str, int] = {}
            for cell in planned:
                counted[cell.model] = counted.get(cell.model, 0) + 1
            for model, number in counted.items():
                if number > self.limits.cells:
                    raise ConfigError(
                        f"{model} has {number} cells, and limits.cells allows {self.limits.cells}: narrow an axis, or "
                        "raise it."
                    )


def load_plan(path: Path) -> SweepConfig:
    """The plan in a file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a value that cannot be.
    """
    try:
        described = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where} is not YAML: {problem}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is no plan: it has too many brackets within brackets.") from None
    try:
        return parse_plan(described)
    except (ConfigError, NothingToVerifyError) as error:
        raise type(error)(f"{path}: {error}") from None


def parse_plan(described: object) -> SweepConfig:
    """The plan that a mapping describes.

    Raises:
        ConfigError: an unknown key or a value that cannot be.
        NothingToVerifyError: an axis without a value.
    """
    if not isinstance(described, Mapping):
        raise ConfigError("a plan is a mapping: begin with `models: [codegen-nano]`.")
    try:
        config = SweepConfig.model_validate(dict(described))
    except ValidationError as error:
        raise _told(error) from None
    config.further()
    return config


class _Loader(yaml.SafeLoader):
    """A SafeLoader that says where something stands of which it can make nothing.

    YAML lets a key stand twice, and the first is lost without a word; here it is an error.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):  # of `int`, `date` and other types of Python
            if not isinstance(node, yaml.ScalarNode):
                raise
            problem = f"{node.value!r} looks like a value of {node.tag.rpartition(':')[2]}, and is none"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a word", key.start_mark)
            name = key.value
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_KEYS: dict[str, type[BaseModel]] = {"exclude": Rule, "include": AxesProduct, "limits": Limits, "models": Model}


def _told(error: ValidationError, within: tuple[str | int, ...] = ()) -> ConfigError | NothingToVerifyError:
    """What is wrong in a part of the plan: a misspelt key rather than the key that is missing for it."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    loc = (*within, *first["loc"])
    if first["type"] == "too_short":
        return NothingToVerifyError(f"The plan is empty: {_place(loc)} names nothing.")
    return ConfigError(_sentence(first, loc))


def _sentence(error: ErrorDetails, loc: tuple[str | int, ...]) -> str:
    """What is wrong, where."""
    if error["type"] == "extra_forbidden":
        parts: list[type[BaseModel]] = [_KEYS[part] for part in loc[:-1] if isinstance(part, str) and part in _KEYS]
        known = list((parts[-1] if parts else SweepConfig).model_fields)
        close = get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
        inside = f" in {_place(loc[:-1])}" if loc[:-1] else ""
        return f"unknown key {str(loc[-1])!r}{inside}: {hint}"
    if error["type"] == "missing":
        return f"{_place(loc)} is missing."
    told = error["msg"][0].lower() + error["msg"][1:]
    given = "" if isinstance(error["input"], Mapping | list) else f" {error['input']!r}"
    return f"{_place(loc)}{given}: {told}{'' if told.endswith('?') else '.'}"


_TYPES = {"int", "str", "literal['none']", "literal['own']"}


def _place(loc: Sequence[str | int]) -> str:
    """`("exclude", 0, "layers")` is `exclude[0].layers`; the names of a union's members are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _TYPES:
            text += f".{part}" if text else part
    return text or "the plan"
