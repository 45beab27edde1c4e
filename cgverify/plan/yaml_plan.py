"""A plan from a YAML file, such as those in `configs/`.

    models: [codegen-350M, {model: ./mine, weights: random}]
    dtypes: [float32, bfloat16]
    limits: {layers: 3}
    exclude:
      - {models: "*-16B", cases: backward}

| key | |
|---|---|
| `models` | names of `cgverify models`, folders, hub ids; the only key that is required |
| `weights` | `auto`, `pretrained`, `random` or `random:SEED`, for the models without their own |
| `candidates`, `dtypes`, `devices`, `seeds` | axes: every combination becomes a cell |
| `rotary_dims`, `cases` | axes; `own` is the checkpoint's rotary_dim, `all` is every case |
| `attentions` | axis: `eager`, `sdpa`, the implementation that Hugging Face's side runs |
| `layers`, `components` | axes: `all`, or numbers and ranges such as `5-7`; globs over names or kinds |
| `batch_size`, `seq_len` | size of the random inputs |
| `limits` | the most values of an axis that are taken, from the first on; layers evenly, with the first and the last. \
`cells` refuses a plan with more cells for a checkpoint |
| `include` | more products: each has keys as above, and takes its other keys from the top |
| `exclude` | rules: a cell that fits every key of a rule is left out. Text is a glob |

The defaults are those of `cgverify all-components`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from cgverify.common.errors import ConfigError, NothingToVerifyError, suggestion
from cgverify.common.records import Cell, Checkpoint
from cgverify.plan.axes import (
    Axes,
    Axis,
    CheckpointAxes,
    Limits,
    Name,
    PlanModel,
    Rule,
    Values,
    describe_error,
)


class Model(PlanModel):
    """A checkpoint, with its own `weights` if they differ from the plan's."""

    model: Name
    weights: Name | None = None


def _as_model(value: Any) -> Any:
    if isinstance(value, str):
        return {"model": value}
    if isinstance(value, Mapping | Model):
        return value
    raise PydanticCustomError("model", "write a name, or {model: NAME, weights: random}")


class AxesProduct(Axes):
    """Axes over several checkpoints."""

    models: Axis[Annotated[Model, BeforeValidator(_as_model)]]
    weights: Name = "auto"

    def requests(self) -> list[CheckpointAxes]:
        axes = self.within_limits()
        return [CheckpointAxes(entry.model, entry.weights or self.weights, axes) for entry in self.models]


class SweepConfig(AxesProduct):
    """The content of a file: a product, more products, and rules that leave cells out."""

    include: Values[dict[str, Any]] = Field(default=[])
    exclude: Values[Rule] = Field(default=[])

    def all_requests(self) -> list[CheckpointAxes]:
        return [request for one in (self, *self.included()) for request in one.requests()]

    def included(self) -> list[AxesProduct]:
        """Return the products of `include`, completed from the top."""
        top = {name: getattr(self, name) for name in self.model_fields_set & set(AxesProduct.model_fields)}
        products = []
        for place, entry in enumerate(self.include):
            try:
                products.append(AxesProduct.model_validate({**top, **entry}))
            except ValidationError as error:
                raise _plan_error(error, ("include", place)) from None
            if "limits" in entry and products[-1].limits.cells is not None:
                raise ConfigError(f"include[{place}].limits.cells: it is for the whole plan, so write it at the top.")
        return products

    def require_sense(
        self, planned: Sequence[Cell], before: Sequence[Cell], unknown: Collection[Checkpoint] = ()
    ) -> None:
        """Raise ConfigError for a rule that leaves nothing out, or if there are more cells than `limits` allows.

        Args:
            planned: the cells.
            before: the cells without `exclude`.
            unknown: the checkpoints whose cells are unknown here. A rule may fit some of them.
        """
        for place, rule in enumerate(self.exclude):
            if not any(rule.fits(cell) for cell in before) and not any(rule.may_fit(one) for one in unknown):
                raise ConfigError(f"exclude[{place}] fits no cell of the plan: correct it, or leave it out.")
        if self.limits.cells is None:
            return
        for model, number in Counter(cell.model for cell in planned).items():
            if number > self.limits.cells:
                raise ConfigError(
                    f"{model} has {number} cells, and limits.cells allows {self.limits.cells}: narrow an axis, or "
                    "raise it."
                )


def load_plan(path: Path) -> SweepConfig:
    """Return the plan in a file.

    Raises:
        ConfigError: the file does not exist or is not YAML, or see `parse_plan`.
        NothingToVerifyError: see `parse_plan`.
    """
    try:
        described = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where} is not YAML: {problem}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is not a plan: it has too many brackets within brackets.") from None
    try:
        return parse_plan(described)
    except (ConfigError, NothingToVerifyError) as error:
        raise type(error)(f"{path}: {error}") from None


def parse_plan(described: object) -> SweepConfig:
    """Return the plan that a mapping describes.

    Raises:
        ConfigError: a key is unknown, or a value is not allowed.
        NothingToVerifyError: an axis has no value.
    """
    if not isinstance(described, Mapping):
        raise ConfigError("a plan is a mapping: begin with `models: [codegen-nano]`.")
    try:
        config = SweepConfig.model_validate(dict(described))
    except ValidationError as error:
        raise _plan_error(error) from None
    config.included()
    return config


def plain(value: Any) -> Any:
    """Convert a plan to the types of YAML: paths to strings, and all iterables but strings and mappings to lists."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(one) for one in value]
    return value


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose errors name the line of a value that it cannot convert, or of a key.

    YAML allows a repeated key and silently drops the first; here it is an error.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError):  # raised by `int`, `date` and other types
            if not isinstance(node, yaml.ScalarNode):
                raise
            problem = f"{node.value!r} looks like a value of {node.tag.rpartition(':')[2]}, and is not one"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a word", key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value!r} is repeated"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_KEYS: dict[str, type[BaseModel]] = {"exclude": Rule, "include": AxesProduct, "limits": Limits, "models": Model}


def _plan_error(error: ValidationError, within: tuple[str | int, ...] = ()) -> ConfigError | NothingToVerifyError:
    """Return the error for a part of the plan. A misspelt key is reported before the key that is missing for it."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    loc = (*within, *first["loc"])
    if first["type"] == "too_short":
        return NothingToVerifyError(f"The plan is empty: {_place(loc)} names nothing.")
    if first["type"] == "missing":
        return ConfigError(f"{_place(loc)} is missing.")
    return ConfigError(_unknown_key(loc) if first["type"] == "extra_forbidden" else describe_error(first, _place(loc)))


def _unknown_key(loc: tuple[str | int, ...]) -> str:
    parts = [_KEYS[part] for part in loc[:-1] if isinstance(part, str) and part in _KEYS]
    known = list((parts[-1] if parts else SweepConfig).model_fields)
    inside = f" in {_place(loc[:-1])}" if loc[:-1] else ""
    return f"unknown key {str(loc[-1])!r}{inside}: {suggestion(str(loc[-1]), known)}"


_UNION_MEMBERS = {"int", "str", "literal['none']", "literal['own']"}


def _place(loc: Sequence[str | int]) -> str:
    """Return `exclude[0].layers` for `("exclude", 0, "layers")`. The names of a union's members are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _UNION_MEMBERS:
            text += f".{part}" if text else part
    return text or "the plan"
