"""Stages: the computation that leads from taps of one side to its next tap, with the oracle for it.

A stage reads a side's own taps and the inputs that the side was given, all by name: `hook_q`, `attn.hook_q` inside a
block, `given.position_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cgverify.common.records import EAGER, SDPA
from cgverify.observe.generations import installed
from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, exact_input, exact_output
from cgverify.oracle.block_sum import block_sum
from cgverify.oracle.cache import cached, placed
from cgverify.oracle.fused_attention import fused_attention
from cgverify.oracle.fused_qkv import fused_output
from cgverify.oracle.gelu import gelu_new
from cgverify.oracle.layer_norm import layer_norm, normalized, scale
from cgverify.oracle.mix import mix
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.product import products
from cgverify.oracle.rope import rope
from cgverify.oracle.softmax import softmax

TensorsByName = Mapping[str, torch.Tensor]
"""A side's taps and given inputs."""

Compute = Callable[[TensorsByName, Parameters], Expected]


class UnfitTapError(Exception):
    """A tap that a stage starts from never fired, or has a shape or dtype from which nothing can be computed."""

    def __init__(self, tap: str, problem: str) -> None:
        super().__init__(tap, problem)
        self.tap, self.problem = tap, problem

    def __str__(self) -> str:
        """Return `hook_q has shape [2, 8, 64] where [2, 8, 4, 16] is right`."""
        return f"{self.tap} {self.problem}"


class MissingTapError(UnfitTapError, KeyError):
    """It never fired. As a KeyError, it lets `get` return None."""


Misfit = Callable[[str, torch.Tensor], str]
"""Given a tap's name and the tap: what is wrong with its shape or dtype; empty if nothing is."""


def no_misfit(_: str, __: torch.Tensor) -> str:
    return ""


def wrong_form(tensor: torch.Tensor, like: torch.Tensor) -> str:
    """Say why a stage cannot start from a tensor where it expects one like another; empty if it can.

    Any floating-point dtype of a checkpoint will do for another one: the bounds follow it.
    """
    if tensor.shape != like.shape:
        return f"has shape {list(tensor.shape)} where {list(like.shape)} is right"
    if tensor.dtype != like.dtype and not {tensor.dtype, like.dtype} <= UNIT_ROUNDOFF.keys():
        return f"is {tensor.dtype} where {like.dtype} is right".replace("torch.", "")
    return ""


def fitting(name: str, tensors: TensorsByName, misfit: Misfit) -> torch.Tensor:
    """Return a tensor by name that a stage can start from.

    Raises:
        UnfitTapError: it never fired, or is a misfit.
        KeyError: it is an input that is given by this package.
    """
    if name not in tensors and not name.startswith("given."):
        raise MissingTapError(name, "never fired")
    if problem := misfit(name, tensors[name]):
        raise UnfitTapError(name, problem)
    return tensors[name]


@dataclass(frozen=True)
class TapFunction:
    """An oracle that is computed from one side's tensors. It is cheap enough to be computed for each side."""

    compute: Compute

    def expect(
        self, side: TensorsByName, parameters: Parameters, misfit: Misfit = no_misfit
    ) -> tuple[Expected | UnfitTapError, list[str]]:
        """Return the expected tap and the names that it was computed from.

        The first is an error if a tap that the stage reads never fired, or is a misfit. Nothing is then computed.
        """
        read = _ReadTensors(side, misfit)
        try:
            return self.compute(read, parameters), read.names
        except UnfitTapError as unfit:
            return unfit, read.names


@dataclass(frozen=True)
class WeightProduct:
    """An oracle that is input · weightᵀ + bias. It is computed for all sides at once, so that a weight is read once."""

    input: str
    weight: str
    autocast: torch.dtype | None = None
    """The dtype that autocast rounds both to first, if it is on."""


Oracle = TapFunction | WeightProduct


class _ReadTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, each checked before it is used, with a record of the names that were read."""

    def __init__(self, tensors: TensorsByName, misfit: Misfit) -> None:
        self._tensors = tensors
        self._misfit = misfit
        self.names: list[str] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names.append(name)
        return fitting(name, self._tensors, self._misfit)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Stage:
    name: str
    """The operation: `project_q`, `rope`, `scores`, …"""
    tap: str
    oracle: Oracle
    axes: tuple[str, ...]
    """The meaning of the tap's dimensions, for messages."""
    required: bool = True
    """Whether a candidate fails if the tap never fires."""
    masked: bool = False
    """Whether elements that the attention mask hides are left out of direct comparison."""
    meaning: str = ""
    """What it means if this stage breaks, if its name does not say so."""
    shown_with: tuple[str, ...] = (EAGER, SDPA)
    """The implementations of attention with which Hugging Face's side has the tap. Empty if it never has: such a tap is
    compared with its oracle alone."""


def expect_products(
    inputs: Sequence[torch.Tensor], weight: str, parameters: Parameters, autocast: torch.dtype | None = None
) -> Iterator[tuple[slice, list[Expected]]]:
    """Yield blocks of output columns, each with the expected product of every input with `weight`.

    The weight is read once, and equal inputs (those of two sides that agree) are multiplied once.

    Args:
        autocast: the dtype of autocast, if it is on.
    """
    matrix, bias = parameters.tensor(weight), parameters.bias(weight)
    rows = [x.reshape(-1, matrix.shape[-1]).contiguous() for x in inputs]
    keys = [(str(x.dtype), x.view(torch.uint8).numpy().tobytes()) for x in rows]
    unique = dict(zip(keys, rows, strict=True))
    for columns, answers in products(list(unique.values()), matrix, bias, parameters.shortcuts, autocast):
        answer = dict(zip(unique, answers, strict=True))
        yield columns, [answer[key] for key in keys]


def expected_tap(
    stage: Stage, side: TensorsByName, parameters: Parameters, misfit: Misfit = no_misfit
) -> Expected | None:
    """Return the whole expected tap in the tap's shape; None if a tap that it starts from is missing or a misfit."""
    if isinstance(stage.oracle, TapFunction):
        answer, _ = stage.oracle.expect(side, parameters, misfit)
        return None if isinstance(answer, UnfitTapError) else answer
    product = stage.oracle
    try:
        given = fitting(product.input, side, misfit)
    except UnfitTapError:
        return None
    parts = [one for _, (one,) in expect_products([given], product.weight, parameters, product.autocast)]
    value, bound = (torch.cat(pieces, -1) for pieces in ([p.value for p in parts], [p.bound for p in parts]))
    tap = side.get(stage.tap)
    shape = tap.shape if tap is not None and tap.numel() == value.numel() else value.shape
    return Expected(value.reshape(shape), bound.reshape(shape), parts[0].dtype)


# --- the stages of each component -------------------------------------------------------------------------------------


RESIDUAL = ("batch", "position", "dimension")
HEADS = ("batch", "position", "head", "dimension")
PATTERN = ("batch", "head", "position", "key")
CACHE = ("batch", "head", "position", "dimension")

CACHE_START = "given.cache_start"
"""The place of the first new token in a cache of fixed size. A cache that grows has none."""


def unchanged(source: str) -> TapFunction:
    """The oracle of a tap that must be `source`, bit for bit."""
    return TapFunction(lambda side, _: exact_output(side[source], side[source].dtype))


def copy(name: str, tap: str, source: str, axes: tuple[str, ...], required: bool = True) -> Stage:
    """`tap` must be `source`, bit for bit."""
    return Stage(name, tap, unchanged(source), axes, required)


def linear(
    name: str, tap: str, source: str, weight: str, axes: tuple[str, ...] = RESIDUAL, required: bool = True
) -> Stage:
    return Stage(name, tap, WeightProduct(source, weight), axes, required)


def with_returned(stages: tuple[Stage, ...], pattern: str | None = None) -> tuple[Stage, ...]:
    """Add the stages of what a component returns: `hook_out`, and the tap of the attention pattern if it is named."""
    returned = copy("returned", "returned", "hook_out", RESIDUAL)
    if pattern is None:
        return (*stages, returned)
    with_pattern = Stage("returned", "returned_pattern", unchanged(pattern), PATTERN, shown_with=(EAGER,))
    return (*stages, returned, with_pattern)


def single_linear(name: str, weight: str, axes: tuple[str, ...]) -> tuple[Stage, ...]:
    """The stages of a linear that is a component of its own."""
    return (
        copy("input", "hook_in", "given.hidden_states", RESIDUAL),
        linear(name, "hook_out", "hook_in", weight, axes),
        linear(name, "returned", "hook_in", weight),
    )


def embedding() -> tuple[Stage, ...]:
    def rows(side: TensorsByName, parameters: Parameters) -> Expected:
        weight = parameters.tensor("embed")
        return exact_output(weight[side["hook_in"]], weight.dtype)

    return (
        copy("input", "hook_in", "given.input_ids", ("batch", "position")),
        Stage("embedding", "hook_out", TapFunction(rows), RESIDUAL),
    )


def norm(prefix: str, source: str, weight: str) -> tuple[Stage, ...]:
    """The stages of a layer norm with `weight`'s gain and bias and hooks under `prefix`; `source` must come in."""
    into = f"{prefix}hook_in"

    def scaled(side: TensorsByName, parameters: Parameters) -> Expected:
        return scale(side[into], parameters.eps)

    def x_hat(side: TensorsByName, parameters: Parameters) -> Expected:
        return normalized(side[into], parameters.eps)

    def normed(side: TensorsByName, parameters: Parameters) -> Expected:
        return layer_norm(side[into], *parameters.gain_and_bias(weight), parameters.eps)

    return (
        copy("input", into, source, RESIDUAL),
        Stage("scale", f"{prefix}hook_scale", TapFunction(scaled), RESIDUAL, required=False, shown_with=()),
        Stage("normalized", f"{prefix}hook_normalized", TapFunction(x_hat), RESIDUAL, required=False, shown_with=()),
        Stage("layer_norm", f"{prefix}hook_out", TapFunction(normed), RESIDUAL),
    )


def mlp(prefix: str, source: str) -> tuple[Stage, ...]:
    """The stages of the MLP with hooks under `prefix`; `source` must come in."""
    pre, post = f"{prefix}in.hook_out", f"{prefix}out.hook_in"
    return (
        copy("input", f"{prefix}hook_in", source, RESIDUAL),
        copy("input", f"{prefix}in.hook_in", f"{prefix}hook_in", RESIDUAL, required=False),
        linear("mlp_in", pre, f"{prefix}hook_in", "mlp.in"),
        Stage("activation", post, TapFunction(lambda side, _: gelu_new(side[pre])), RESIDUAL),
        linear("mlp_out", f"{prefix}out.hook_out", post, "mlp.out", required=False),
        linear("mlp_out", f"{prefix}hook_out", post, "mlp.out"),
    )


def rotated_heads(x: torch.Tensor, table: torch.Tensor, position_ids: torch.Tensor) -> Expected:
    """Return x, rotated, in the dtype that attention shows it in. The arguments are those of `rope`."""
    return installed().cast_rotated(rope(x, table, position_ids), x.dtype)


@dataclass(frozen=True)
class Heads:
    """The operands of attention's products, `[batch, heads, seq or keys, head_dim]`."""

    prefix: str
    """The prefix of attention's taps."""
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
        """The tap, or the expected rotation if its hook never fired."""
        seen = side.get(f"{self.prefix}hook_rot_{which}")
        heads = exact_input(seen) if seen is not None else self.rotate(which, side, parameters)
        return Expected(heads.value.transpose(1, 2), heads.bound.transpose(1, 2), heads.dtype)

    def rotate(self, which: str, side: TensorsByName, parameters: Parameters) -> Expected:
        """The expected rotation, `[batch, seq, heads, head_dim]`."""
        x, table = side[f"{self.prefix}hook_{which}"], parameters.tensor("attn.table")
        return rotated_heads(x, table, side["given.position_ids"])


def attention(prefix: str, source: str, with_cache: bool) -> tuple[Stage, ...]:
    """The stages of attention with hooks under `prefix`; `source` must come in."""
    heads = Heads(prefix, with_cache)
    into, out, z = f"{prefix}hook_in", f"{prefix}hook_out", f"{prefix}hook_z"
    attn_scores, pattern = f"{prefix}hook_attn_scores", f"{prefix}hook_pattern"

    def fused(side: TensorsByName, _: Parameters) -> Expected:
        parts = {w: side[f"{prefix}hook_{w}"] for w in "qkv"}
        return exact_output(fused_output(parts), parts["q"].dtype)

    def rotated(which: str) -> TapFunction:
        return TapFunction(lambda side, parameters: heads.rotate(which, side, parameters))

    def extended(side: TensorsByName, name: str, new: Expected) -> Expected:
        dtype = installed().cached_dtype(side[into].dtype, side[f"{prefix}hook_v"].dtype)
        before, start = side.get(f"given.cache_{name}"), side.get(CACHE_START)
        if start is None:
            return cached(before, new, dtype)
        return placed(before, new, int(start), side["given.attention_mask"].shape[-1], dtype)

    def cached_keys(side: TensorsByName, parameters: Parameters) -> Expected:
        return extended(side, "keys", heads.rotated("k", side, parameters))

    def cached_values(side: TensorsByName, _: Parameters) -> Expected:
        return extended(side, "values", exact_input(side[f"{prefix}hook_v"].transpose(1, 2)))

    def scored(side: TensorsByName, parameters: Parameters) -> Expected:
        query, key = heads.query(side, parameters), heads.key(side, parameters)
        return installed().scores(query, key, side.get("given.attention_mask"), parameters.shortcuts)

    def patterned(side: TensorsByName, _: Parameters) -> Expected:
        return softmax(side[attn_scores], heads.value(side).dtype)

    def mixed(side: TensorsByName, parameters: Parameters) -> Expected:
        if pattern not in side and attn_scores not in side:  # a fused implementation of Hugging Face's attention
            query, key = heads.query(side, parameters), heads.key(side, parameters)
            mask = side.get("given.attention_mask")
            return fused_attention(query, key, heads.value(side), mask, parameters.shortcuts)
        return mix(side[pattern], heads.value(side), parameters.shortcuts)

    caching = (
        Stage("cache", f"{prefix}cache_keys", TapFunction(cached_keys), CACHE),
        Stage("cache", f"{prefix}cache_values", TapFunction(cached_values), CACHE),
    )
    return (
        copy("input", into, source, RESIDUAL),
        copy("input", f"{prefix}qkv.hook_in", into, RESIDUAL, required=False),
        *(copy("input", f"{prefix}{w}.hook_in", into, RESIDUAL, required=False) for w in "qkv"),
        Stage("qkv_layout", f"{prefix}qkv.hook_out", TapFunction(fused), RESIDUAL, required=False),
        *(linear(f"project_{w}", f"{prefix}hook_{w}", into, f"attn.{w}", HEADS) for w in "qkv"),
        *(Stage("rope", f"{prefix}hook_rot_{w}", rotated(w), HEADS) for w in "qk"),
        *(caching if with_cache else ()),
        Stage("scores", attn_scores, TapFunction(scored), PATTERN, masked=True, shown_with=(EAGER,)),
        Stage("softmax", pattern, TapFunction(patterned), PATTERN, shown_with=(EAGER,)),
        Stage("mix", z, TapFunction(mixed), HEADS),
        linear("output", f"{prefix}o.hook_out", z, "attn.o", required=False),
        copy("output", f"{prefix}hook_hidden_states", out, RESIDUAL, required=False),
        linear("output", out, z, "attn.o"),
    )


def block(with_cache: bool) -> tuple[Stage, ...]:
    """The stages of the whole block: layer norm, then attention and MLP in parallel, then the sum."""

    def summed(side: TensorsByName, _: Parameters) -> Expected:
        return block_sum(side["attn.hook_out"], side["mlp.hook_out"], side["hook_in"])

    return (
        copy("input", "hook_in", "given.hidden_states", RESIDUAL),
        *norm("ln1.", "hook_in", "ln1"),
        *attention("attn.", "ln1.hook_out", with_cache),
        *mlp("mlp.", "ln1.hook_out"),
        Stage("block_sum", "hook_out", TapFunction(summed), RESIDUAL),
    )
