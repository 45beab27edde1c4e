"""Inputs that both sides are given alike.

They start from random inputs: those of the candidate's own `get_random_inputs(batch_size, seq_len, device, dtype)` if
it has one, otherwise those of a builder below. Random inputs are drawn on the CPU in float32, the global random state
is restored afterwards, and the tensors are then cast and moved. So one seed is one input in every dtype and on every
device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import Cache

from cgverify.common.records import EAGER
from cgverify.observe.conditions import PLAIN, Conditions
from cgverify.observe.generations import installed

Inputs = dict[str, torch.Tensor]
LOWEST = torch.finfo(torch.float32).min

RandomInputs = Callable[[int, int], Inputs]
"""From batch size and sequence length to random inputs on the CPU in float32."""


@dataclass(frozen=True)
class Step:
    """One forward of a case."""

    name: str
    inputs: Inputs
    conditions: Conditions = PLAIN
    cache: str | None = None
    """The name of the cache that goes through it. Steps with the same name share one; None is no cache."""
    cache_size: int | None = None
    """The number of tokens that a `StaticCache` has room for. None is a `DynamicCache`, which grows."""
    change_cache: Callable[[Any], object] | None = None
    """What is done to the cache before the forward."""
    repeats: str | None = None
    """The name of an earlier step whose bits the candidate must show again."""
    in_last_memory: bool = False
    """Whether the inputs are written into the tensors of the step before, which were others of the same shapes."""
    events: tuple[str, ...] = ()
    """What the candidate goes through before, by name: see `cgverify.observe.events`."""


@dataclass(frozen=True)
class PromptSpan:
    """The tokens of a prompt that one forward takes. Those before are in the cache."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class CaseInputs:
    """The forwards of a case, in order."""

    steps: tuple[Step, ...]

    def rounded_to(self, dtype: torch.dtype) -> CaseInputs:
        """Return these inputs, and what is drawn later, in values that `dtype` has. A mask's minimum is kept."""
        return CaseInputs(
            tuple(
                replace(step, inputs=_rounded_to(step.inputs, dtype), conditions=step.conditions.rounded_to(dtype))
                for step in self.steps
            )
        )

    def gives_same_inputs(self, other: CaseInputs) -> bool:
        """Whether both give equal tensors."""
        return len(self.steps) == len(other.steps) and all(
            mine.inputs.keys() == theirs.inputs.keys()
            and all(torch.equal(mine.inputs[name], theirs.inputs[name]) for name in mine.inputs)
            for mine, theirs in zip(self.steps, other.steps, strict=True)
        )


@dataclass(frozen=True)
class InputSpec:
    """The cell's numbers from which a case makes its inputs."""

    seed: int
    batch_size: int
    seq_len: int
    n_positions: int
    dtype: torch.dtype
    """The cell's dtype, which the inputs are cast to in the end."""
    spread: float
    """The factor on standard normal hidden states that gives the attention's scores a standard deviation of 3."""
    n_heads: int
    attention: str = EAGER
    """The implementation of attention that the reference runs."""


InputTransform = Callable[[Inputs, InputSpec], Inputs]
"""Changes random inputs so that they show what random ones hide."""


def leave_unchanged(inputs: Inputs, _: InputSpec) -> Inputs:
    return inputs


def draw(random_inputs: RandomInputs, spec: InputSpec, transform: InputTransform, extra: int = 0) -> Inputs:
    """Return transformed inputs of `seq_len + extra` tokens, on the CPU in float32. The random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)  # the CPU's alone: nothing restores that of other devices
        return transform(random_inputs(spec.batch_size, spec.seq_len + extra), spec)


def convert(inputs: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return inputs cast and moved, with their strides.

    The lowest float32 of a mask becomes the lowest `dtype`: a cast would give −∞.
    """
    return {name: _convert(value, dtype, device) for name, value in inputs.items()}


def _convert(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_floating_point() or value.dtype == dtype:
        return value.to(device, copy=True)
    lowest = (value <= LOWEST) & value.isfinite()
    # In place, since `masked_fill` would return a contiguous tensor.
    return value.to(dtype).masked_fill_(lowest, torch.finfo(dtype).min).to(device)


def _rounded_to(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {
        name: torch.where(value <= LOWEST, value, value.to(dtype).to(value.dtype))
        if value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


def slice_tokens(inputs: Inputs, tokens: slice, rows: slice = slice(None)) -> Inputs:
    """Return the inputs of attention or a block for some tokens of a sequence. Keys go up to the last of them.

    Args:
        rows: the rows of the positions: one for the whole batch, or all.
    """
    return {
        "hidden_states": inputs["hidden_states"][:, tokens],
        "position_ids": inputs["position_ids"][rows, tokens],
        "attention_mask": inputs["attention_mask"][:, :, tokens, : tokens.stop],
    }


def fill_layers_below(cache: Cache, layer: int, n_heads: int, hidden_states: torch.Tensor) -> None:
    """Cache zeros for the layers below, which have cached a forward's tokens by now: a layer may ask for their length.

    Args:
        hidden_states: those of the forward, `[batch, seq, width]`.
    """
    batch, seq, width = hidden_states.shape
    zeros = hidden_states.new_zeros(batch, n_heads, seq, width // n_heads)
    for below in range(layer):
        cache.update(zeros, zeros, below)


def require_rows(inputs: Inputs, vocab_size: int, n_positions: int) -> None:
    """Raise ValueError if token ids or positions are not rows of the tables that a model looks them up in."""
    for name, rows in (("input_ids", vocab_size), ("position_ids", n_positions)):
        indices = inputs.get(name)
        if indices is not None and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < rows:
            raise ValueError(f"{name} of a case are not between 0 and {rows - 1}")


class CandidateInputsError(ValueError):
    """What a candidate's `get_random_inputs` returned breaks the contract."""


def checked_inputs(contract: RandomInputs, own: Callable[..., Mapping[str, Any]]) -> RandomInputs:
    """Return a candidate's own `get_random_inputs`, checked against our builder: a candidate must not ease its test.

    Keys, shapes and dtypes must be equal, positions and mask too. Hidden states must be finite and not constant. The
    result raises CandidateInputsError otherwise. What the model derives from the inputs is left out.
    """

    def random_inputs(batch_size: int, seq_len: int) -> Inputs:
        returned = own(batch_size, seq_len, torch.device("cpu"), torch.float32)
        if not isinstance(returned, Mapping):
            raise CandidateInputsError(f"it returns a {type(returned).__name__} where a mapping is wanted")
        given = dict(returned)
        for name in installed().derived_inputs:
            given.pop(name, None)
        with torch.random.fork_rng(devices=[]):
            wanted = contract(batch_size, seq_len)
        if given.keys() != wanted.keys():
            raise CandidateInputsError(f"it returns {', '.join(map(str, given))} where {', '.join(wanted)} are wanted")
        for name, value in wanted.items():
            found = given[name]
            if not isinstance(found, torch.Tensor) or found.shape != value.shape or found.dtype != value.dtype:
                raise CandidateInputsError(f"its {name} is no {value.dtype} tensor of shape {list(value.shape)}")
            if name == "hidden_states":
                if not found.isfinite().all() or (found.numel() > 1 and not found.std() > 0):
                    raise CandidateInputsError(f"its {name} is not finite and spread")
            elif not found.equal(value):
                raise CandidateInputsError(f"its {name} is not as the contract says")
        return given

    return random_inputs


# --- builders, for components that have no get_random_inputs of their own ---------------------------------------------


def hidden_states(width: int) -> RandomInputs:
    """Standard normal `hidden_states` `[batch, seq, width]`."""
    return lambda batch, seq: {"hidden_states": torch.randn(batch, seq, width)}


def token_ids(vocab_size: int) -> RandomInputs:
    """Uniform `input_ids` `[batch, seq]`."""
    return lambda batch, seq: {"input_ids": torch.randint(vocab_size, (batch, seq))}


def attention_inputs(width: int) -> RandomInputs:
    """The inputs of attention and block: standard normal hidden states, positions 0, 1, 2, … and a causal mask."""

    def random_inputs(batch: int, seq: int) -> Inputs:
        hidden = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        return {
            "hidden_states": torch.randn(batch, seq, width),
            "position_ids": torch.arange(seq).expand(batch, -1),
            "attention_mask": torch.zeros(batch, 1, seq, seq).masked_fill(hidden, LOWEST),
        }

    return random_inputs


def prompt_context(span: PromptSpan) -> Inputs:
    """Positions `[1, seq]` and a causal mask `[1, 1, seq, keys]`, as Hugging Face's model gives them to its blocks."""
    seen = torch.ones(span.stop - span.start, span.stop, dtype=torch.bool).tril(span.start)
    mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, LOWEST)
    return {"position_ids": torch.arange(span.start, span.stop).unsqueeze(0), "attention_mask": mask}


def block_inputs(block: Inputs, taps: Mapping[str, torch.Tensor]) -> dict[str, Inputs]:
    """Return the inputs of each component inside a block, by kind, as the block's own forward passed them on.

    Args:
        block: what the block was given.
        taps: what was seen of it.
    """
    context = {name: block[name] for name in ("position_ids", "attention_mask")}
    normed = {"hidden_states": taps["attn.hook_in"]}
    return {
        "ln1": {"hidden_states": taps["ln1.hook_in"]},
        "attn": normed | context,
        **{f"attn.{w}": normed for w in "qkv"},
        "attn.o": {"hidden_states": taps["attn.hook_z"].flatten(2)},
        "mlp": {"hidden_states": taps["mlp.hook_in"]},
        "mlp.in": {"hidden_states": taps["mlp.in.hook_in"]},
        "mlp.out": {"hidden_states": taps["mlp.out.hook_in"]},
    }


# --- the stress case: what random inputs hide -------------------------------------------------------------------------


def stress_tokens(vocab_size: int, special: Sequence[object] = ()) -> InputTransform:
    """For the embedding: the first and the last id, special ids, and one id many times.

    Only these show a table that is off by one, or a dropped row.
    """

    def stress(inputs: Inputs, _: InputSpec) -> Inputs:
        ids = inputs["input_ids"].clone()
        rows = range(vocab_size)  # a config may name special ids that are no row of the embedding, such as -1
        edges = [0, vocab_size - 1, *(token for token in special if token in rows)]
        flat = ids.view(-1)
        flat[: len(edges)] = torch.tensor(edges[: len(flat)])
        ids[:, ids.shape[1] // 2 :] = ids[-1, -1]
        return {"input_ids": ids}

    return stress


def stress_rows(inputs: Inputs, _: InputSpec) -> Inputs:
    """For layer norm: rows with variance near eps, a large offset, outlier channels, or both extremes.

    Only these show a wrong or missing eps, a variance computed by cancellation, a mean taken in 16 bits.
    """
    rows = inputs["hidden_states"].clone()
    flat = rows.reshape(-1, rows.shape[-1])
    flat[0::4] *= 3e-3
    flat[1::4] += 30.0
    flat[2::4, ::97] *= 50.0
    return {**inputs, "hidden_states": flat.reshape(rows.shape)}


def stress_channels(inputs: Inputs, _: InputSpec) -> Inputs:
    """For products: a few channels fifty times the rest, as in trained models, and rows of different sizes."""
    rows = inputs["hidden_states"].clone()
    rows[..., ::97] *= 50.0
    sizes = torch.logspace(-2, 0, rows.shape[1]).unsqueeze(-1)
    return {**inputs, "hidden_states": rows * sizes}


def stress_activations(inputs: Inputs, _: InputSpec) -> Inputs:
    """For the MLP: rows from small to large, so that activations cover −9 … 9, where gelu's variants differ."""
    sizes = torch.logspace(-1, 1.2, inputs["hidden_states"].shape[1]).unsqueeze(-1)
    return {**inputs, "hidden_states": inputs["hidden_states"] * sizes}


def stress_attention(inputs: Inputs, spec: InputSpec) -> Inputs:
    """For attention: scores that spread, with the positions and the mask of `stress_context`.

    Random inputs alone make attention almost uniform, which hides ignored positions and a mask added after scaling.
    """
    return {**stress_context(inputs, spec), "hidden_states": inputs["hidden_states"] * spec.spread}


def stress_block(inputs: Inputs, spec: InputSpec) -> Inputs:
    """For the block: the rows of `stress_rows` with the positions and the mask of `stress_context`."""
    return {**stress_context(inputs, spec), **stress_rows({"hidden_states": inputs["hidden_states"]}, spec)}


def stress_context(inputs: Inputs, spec: InputSpec) -> Inputs:
    """Positions with gaps that differ by row, and a soft mask under the causal one with padding on the left."""
    batch, seq = inputs["hidden_states"].shape[:2]
    positions = torch.stack([torch.randperm(spec.n_positions)[:seq].sort().values for _ in range(batch)])
    positions[:, -1] = spec.n_positions - 1  # the table's last row
    given = inputs["attention_mask"]
    soft = torch.randn(given.shape) * 2
    mask = soft.masked_fill(given <= LOWEST, LOWEST)  # the sum of two lowest values would overflow
    padding = seq // 4
    if padding:
        mask[-1, :, :, :padding] = LOWEST
    return {**inputs, "position_ids": positions, "attention_mask": mask}
