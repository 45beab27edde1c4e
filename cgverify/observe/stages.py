"""Stages: the computation that leads from taps of one side to its next tap, with the oracle for it.

A stage sees a side's own taps and what the side was given, under one roof of names: `hook_q`, `attn.hook_q` inside a
block, `given.position_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cgverify.oracle.arithmetic import Expected, exact_input, exact_output
from cgverify.oracle.block_sum import block_sum
from cgverify.oracle.cache import cached
from cgverify.oracle.fused_qkv import joined
from cgverify.oracle.gelu import gelu_new
from cgverify.oracle.layer_norm import layer_norm, normalized, scale
from cgverify.oracle.mix import mix
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.product import products
from cgverify.oracle.rope import rope
from cgverify.oracle.scores import scores
from cgverify.oracle.softmax import softmax

TensorsByName = Mapping[str, torch.Tensor]
"""A side's taps and givens by name."""


@dataclass(frozen=True)
class TapFunction:
    """An oracle that is cheap enough to be asked about one side at a time."""

    compute: Callable[[TensorsByName, Parameters], Expected]

    def expect(self, side: TensorsByName, parameters: Parameters) -> tuple[Expected | None, list[str]]:
        """What the tap must be, and the names it came from.

        None if a tap that the stage starts from never fired, or has a shape that it cannot be computed from.
        """
        read = _Recorder(side)
        try:
            return self.compute(read, parameters), read.names
        except (LookupError, RuntimeError):  # torch says by either that shapes do not fit
            return None, read.names


@dataclass(frozen=True)
class WeightProduct:
    """input · weightᵀ + bias, which is asked about all sides at once."""

    input: str
    weight: str
    autocast: torch.dtype | None = None
    """What autocast rounds both to first, if it is on."""


Oracle = TapFunction | WeightProduct


class _Recorder(Mapping[str, torch.Tensor]):
    """A view that remembers which names were asked for."""

    def __init__(self, view: TensorsByName) -> None:
        self._view = view
        self.names: list[str] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names.append(name)
        return self._view[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._view)

    def __len__(self) -> int:
        return len(self._view)


def expect_products(
    inputs: Sequence[torch.Tensor], weight: str, parameters: Parameters, autocast: torch.dtype | None = None
) -> Iterator[tuple[slice, list[Expected]]]:
    """For a block of output columns after another: what each input's product with `weight` must be there.

    The weight is read once, and equal inputs (those of two sides that agree) are multiplied once.

    Args:
        autocast: its dtype, if it is on.
    """
    matrix, bias = parameters.tensor(weight), parameters.bias(weight)
    rows = [x.reshape(-1, matrix.shape[-1]).contiguous() for x in inputs]
    keys = [(str(x.dtype), x.cpu().view(torch.uint8).numpy().tobytes()) for x in rows]
    unique = dict(zip(keys, rows, strict=True))
    for columns, answers in products(list(unique.values()), matrix, bias, parameters.shortcuts, autocast):
        answer = dict(zip(unique, answers, strict=True))
        yield columns, [answer[key] for key in keys]


def expected_tap(stage: Stage, view: TensorsByName, parameters: Parameters) -> Expected | None:
    """What a tap must be, all columns at once, in its shape; None where it cannot be computed."""
    if isinstance(stage.oracle, TapFunction):
        return stage.oracle.expect(view, parameters)[0]
    if stage.oracle.input not in view:
        return None
    try:
        product = stage.oracle
        blocks = expect_products([view[product.input]], product.weight, parameters, product.autocast)
        parts = [one for _, (one,) in blocks]
    except RuntimeError:  # a candidate's taps may be of any shape
        return None
    value, bound = (torch.cat(pieces, -1) for pieces in ([p.value for p in parts], [p.bound for p in parts]))
    tap = view.get(stage.tap)
    shape = tap.shape if tap is not None and tap.numel() == value.numel() else value.shape
    return Expected(value.reshape(shape), bound.reshape(shape), parts[0].dtype)


@dataclass(frozen=True)
class Stage:
    name: str
    """The operation: `project_q`, `rope`, `scores`, …"""
    tap: str
    oracle: Oracle
    axes: tuple[str, ...]
    """What the tap's dimensions count, for messages."""
    required: bool = True
    """Whether a candidate on which the tap never fires has failed."""
    masked: bool = False
    """Whether elements that the attention mask hides are left out of direct comparison."""
    meaning: str = ""
    """What it means if this stage breaks, where its name does not say so."""


RESIDUAL = ("batch", "position", "dimension")
HEADS = ("batch", "position", "head", "dimension")
PATTERN = ("batch", "head", "position", "key")
CACHE = ("batch", "head", "position", "dimension")


def copy(name: str, tap: str, source: str, axes: tuple[str, ...], required: bool = True) -> Stage:
    """`tap` must be `source`, bit for bit."""
    return Stage(name, tap, TapFunction(lambda side, _: exact_output(side[source], side[source].dtype)), axes, required)


def linear(
    name: str, tap: str, source: str, weight: str, axes: tuple[str, ...] = RESIDUAL, required: bool = True
) -> Stage:
    return Stage(name, tap, WeightProduct(source, weight), axes, required)


def embedding() -> tuple[Stage, ...]:
    def rows(side: TensorsByName, parameters: Parameters) -> Expected:
        weight = parameters.tensor("embed")
        return exact_output(weight[side["hook_in"]], weight.dtype)

    return (
        copy("input", "hook_in", "given.input_ids", ("batch", "position")),
        Stage("embedding", "hook_out", TapFunction(rows), RESIDUAL),
        copy("returned", "returned", "hook_out", RESIDUAL),
    )


def norm(prefix: str, source: str, weight: str) -> tuple[Stage, ...]:
    """Layer norm with `weight`'s gain and bias, hooks under `prefix`."""
    into = f"{prefix}hook_in"

    def normed(side: TensorsByName, parameters: Parameters) -> Expected:
        return layer_norm(side[into], parameters.tensor(weight), parameters.required_bias(weight), parameters.eps)

    return (
        copy("input", into, source, RESIDUAL),
        Stage(
            "scale",
            f"{prefix}hook_scale",
            TapFunction(lambda side, parameters: scale(side[into], parameters.eps)),
            RESIDUAL,
            required=False,
        ),
        Stage(
            "normalized",
            f"{prefix}hook_normalized",
            TapFunction(lambda side, parameters: normalized(side[into], parameters.eps)),
            RESIDUAL,
            required=False,
        ),
        Stage("layer_norm", f"{prefix}hook_out", TapFunction(normed), RESIDUAL),
    )


def mlp(prefix: str, source: str) -> tuple[Stage, ...]:
    pre = f"{prefix}in.hook_out"
    post = f"{prefix}out.hook_in"
    return (
        copy("input", f"{prefix}hook_in", source, RESIDUAL),
        copy("input", f"{prefix}in.hook_in", f"{prefix}hook_in", RESIDUAL, required=False),
        linear("mlp_in", pre, f"{prefix}hook_in", "mlp.in"),
        Stage("activation", post, TapFunction(lambda side, _: gelu_new(side[pre])), RESIDUAL),
        linear("mlp_out", f"{prefix}out.hook_out", post, "mlp.out", required=False),
        linear("mlp_out", f"{prefix}hook_out", post, "mlp.out"),
    )


@dataclass(frozen=True)
class Heads:
    """What the products of attention take, `[batch, heads, seq or keys, head_dim]`."""

    prefix: str
    """Of attention's taps."""
    with_cache: bool

    def query(self, side: TensorsByName, parameters: Parameters) -> Expected:
        return self.rotated("q", side, parameters)

    def key(self, side: TensorsByName, parameters: Parameters) -> Expected:
        if self.with_cache:
            return exact_input(side[f"{self.prefix}cache_keys"])
        return self.rotated("k", side, parameters)

    def value(self, side: TensorsByName) -> torch.Tensor:
        if self.with_cache:
            return side[f"{self.prefix}cache_values"]
        return side[f"{self.prefix}hook_v"].transpose(1, 2)

    def rotated(self, which: str, side: TensorsByName, parameters: Parameters) -> Expected:
        """The tap, or what the rotation must have made where its hook is dead."""
        seen = side.get(f"{self.prefix}hook_rot_{which}")
        heads = exact_input(seen) if seen is not None else self.rotate(which, side, parameters)
        return Expected(heads.value.transpose(1, 2), heads.bound.transpose(1, 2), heads.dtype)

    def rotate(self, which: str, side: TensorsByName, parameters: Parameters) -> Expected:
        """What the rotation must make, `[batch, seq, heads, head_dim]`."""
        x, table = side[f"{self.prefix}hook_{which}"], parameters.tensor("attn.table")
        return rope(x, table, side["given.position_ids"])


def attention(prefix: str, source: str, with_cache: bool) -> tuple[Stage, ...]:
    """The stages of attention, hooks under `prefix`; `source` is what must have come in."""
    heads = Heads(prefix, with_cache)
    tap = {
        name: f"{prefix}{name}"
        for name in (
            "hook_in",
            *("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern"),
            *("hook_z", "hook_out", "cache_keys", "cache_values", "qkv.hook_in", "qkv.hook_out"),
        )
    }

    def fused(side: TensorsByName, _: Parameters) -> Expected:
        return exact_output(joined({w: side[tap[f"hook_{w}"]] for w in "qkv"}), side[tap["hook_q"]].dtype)

    def rotated(which: str) -> TapFunction:
        return TapFunction(lambda side, parameters: heads.rotate(which, side, parameters))

    def scored(side: TensorsByName, parameters: Parameters) -> Expected:
        query, key = heads.query(side, parameters), heads.key(side, parameters)
        return scores(query, key, side.get("given.attention_mask"), parameters.shortcuts)

    def patterned(side: TensorsByName, _: Parameters) -> Expected:
        return softmax(side[tap["hook_attn_scores"]], heads.value(side).dtype)

    def mixed(side: TensorsByName, parameters: Parameters) -> Expected:
        return mix(side[tap["hook_pattern"]], heads.value(side), parameters.shortcuts)

    def cached_keys(side: TensorsByName, parameters: Parameters) -> Expected:
        key = heads.rotated("k", side, parameters)
        return cached(side.get("given.cache_keys"), key, side[tap["hook_in"]].dtype)

    def cached_values(side: TensorsByName, _: Parameters) -> Expected:
        value = exact_input(side[tap["hook_v"]].transpose(1, 2))
        return cached(side.get("given.cache_values"), value, side[tap["hook_in"]].dtype)

    caching = (
        Stage("cache", tap["cache_keys"], TapFunction(cached_keys), CACHE),
        Stage("cache", tap["cache_values"], TapFunction(cached_values), CACHE),
    )
    return (
        copy("input", tap["hook_in"], source, RESIDUAL),
        copy("input", tap["qkv.hook_in"], tap["hook_in"], RESIDUAL, required=False),
        *(copy("input", f"{prefix}{w}.hook_in", tap["hook_in"], RESIDUAL, required=False) for w in "qkv"),
        Stage("qkv_layout", tap["qkv.hook_out"], TapFunction(fused), RESIDUAL, required=False),
        *(linear(f"project_{w}", tap[f"hook_{w}"], tap["hook_in"], f"attn.{w}", HEADS) for w in "qkv"),
        Stage("rope", tap["hook_rot_q"], rotated("q"), HEADS),
        Stage("rope", tap["hook_rot_k"], rotated("k"), HEADS),
        *(caching if with_cache else ()),
        Stage("scores", tap["hook_attn_scores"], TapFunction(scored), PATTERN, masked=True),
        Stage("softmax", tap["hook_pattern"], TapFunction(patterned), PATTERN),
        Stage("mix", tap["hook_z"], TapFunction(mixed), HEADS),
        linear("output", f"{prefix}o.hook_out", tap["hook_z"], "attn.o", required=False),
        copy("output", f"{prefix}hook_hidden_states", tap["hook_out"], RESIDUAL, required=False),
        linear("output", tap["hook_out"], tap["hook_z"], "attn.o"),
    )


def block(with_cache: bool) -> tuple[Stage, ...]:
    """The whole block: layer norm, then attention and MLP side by side, then the sum."""

    def summed(side: TensorsByName, _: Parameters) -> Expected:
        return block_sum(side["attn.hook_out"], side["mlp.hook_out"], side["hook_in"])

    return (
        copy("input", "hook_in", "given.hidden_states", RESIDUAL),
        *norm("ln1.", "hook_in", "ln1"),
        *attention("attn.", "ln1.hook_out", with_cache),
        *mlp("mlp.", "ln1.hook_out"),
        Stage("block_sum", "hook_out", TapFunction(summed), RESIDUAL),
        copy("returned", "returned", "hook_out", RESIDUAL),
        copy("returned", "returned_pattern", "attn.hook_pattern", PATTERN),
    )


def alone(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Stages of a component that runs by itself, with what it returns."""
    return (*stages, copy("returned", "returned", "hook_out", RESIDUAL))
