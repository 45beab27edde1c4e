"""Matched inputs: a probe is what both sides are given, alike.

A probe starts from `get_random_inputs(batch_size, seq_len, device, dtype)`: the component's own where it has one, else
a builder of ours with that signature. It is called on the CPU in float32 with the global random state put back
afterwards, and the tensors are then cast and moved, so that one seed is one input in every dtype and on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from cgverify.observe.conditions import PLAIN, Conditions

Inputs = dict[str, torch.Tensor]
LOWEST = torch.finfo(torch.float32).min


class RandomInputs(Protocol):
    """The signature of `get_random_inputs`."""

    def __call__(
        self, batch_size: int, seq_len: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Step:
    """One forward of a probe."""

    name: str
    inputs: Inputs
    conditions: Conditions = PLAIN
    cache: str | None = None
    """Which `DynamicCache` goes through it: one for all steps that name the same, none by default."""


@dataclass(frozen=True)
class PromptSpan:
    """The tokens of a prompt that one forward takes; those before are in the cache."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class CaseInputs:
    """The forwards of a case, in order."""

    steps: tuple[Step, ...]

    def rounded(self, dtype: torch.dtype) -> CaseInputs:
        """The same in values that `dtype` has, what is drawn later included; a mask's minimum stays the minimum."""
        return CaseInputs(
            tuple(
                replace(step, inputs=_rounded(step.inputs, dtype), conditions=step.conditions.rounded(dtype))
                for step in self.steps
            )
        )

    def with_infinite_masks(self) -> CaseInputs:
        """The same with masks of −∞ where they have the lowest value; a query that saw nothing sees everything."""
        return CaseInputs(tuple(replace(step, inputs=_with_infinite_mask(step.inputs)) for step in self.steps))

    def gives_same_inputs(self, other: CaseInputs) -> bool:
        """Whether both give the same tensors."""
        return len(self.steps) == len(other.steps) and all(
            mine.inputs.keys() == theirs.inputs.keys()
            and all(torch.equal(mine.inputs[name], theirs.inputs[name]) for name in mine.inputs)
            for mine, theirs in zip(self.steps, other.steps, strict=True)
        )


@dataclass(frozen=True)
class InputSpec:
    """What a case may bend inputs by."""

    seed: int
    batch_size: int
    seq_len: int
    n_positions: int
    dtype: torch.dtype
    """What the inputs are cast to in the end: the cell's."""
    spread: float
    """The factor on standard normal hidden states that gives the attention's scores a standard deviation of 3."""


Stress = Callable[[Inputs, InputSpec], Inputs]
"""Bends inputs so that they show what random ones hide."""


def leave_unchanged(inputs: Inputs, _: InputSpec) -> Inputs:
    return inputs


def draw(random_inputs: RandomInputs, recipe: InputSpec, bend: Stress, extra: int = 0) -> Inputs:
    """Inputs of `seq_len + extra` tokens, bent, on the CPU in float32. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the CPU's alone: nothing would put the other devices' back
        inputs = dict(random_inputs(recipe.batch_size, recipe.seq_len + extra, torch.device("cpu"), torch.float32))
        return bend(inputs, recipe)


def convert(inputs: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Inputs cast and moved. The lowest float32 of a mask becomes the lowest of `dtype`, where a cast would give −∞."""
    return {name: _convert(value, dtype, device) for name, value in inputs.items()}


def _rounded(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    def through(value: torch.Tensor) -> torch.Tensor:
        return torch.where(value <= LOWEST, value, value.to(dtype).to(value.dtype))

    return {name: through(value) if value.is_floating_point() else value for name, value in inputs.items()}


def _with_infinite_mask(inputs: Inputs) -> Inputs:
    mask = inputs.get("attention_mask")
    if mask is None:
        return inputs
    hidden = mask <= LOWEST
    blind = hidden.all(-1, keepdim=True)
    return inputs | {"attention_mask": mask.masked_fill(hidden, -torch.inf).masked_fill(blind, 0.0)}


def _convert(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_floating_point() or value.dtype == dtype:
        return value.to(device, copy=True)
    lowest = (value <= LOWEST) & value.isfinite()
    return value.to(dtype).masked_fill(lowest, torch.finfo(dtype).min).to(device)


def slice_tokens(inputs: Inputs, now: slice, rows: slice = slice(None)) -> Inputs:
    """What attention or a block is given of some tokens of a sequence; each sees all keys up to the last of them.

    Args:
        rows: of the positions: one for the whole batch, or all.
    """
    return {
        "hidden_states": inputs["hidden_states"][:, now],
        "position_ids": inputs["position_ids"][rows, now],
        "attention_mask": inputs["attention_mask"][:, :, now, : now.stop],
    }


def checked_inputs(contract: RandomInputs, own: RandomInputs) -> RandomInputs:
    """A candidate's own `get_random_inputs`, held to what the contract gives: a candidate may not choose its exam.

    Keys, shapes and kinds must be the same, positions and mask equal, hidden states finite and not constant.
    The result raises ValueError otherwise.
    """

    def random_inputs(
        batch_size: int, seq_len: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Inputs:
        given = dict(own(batch_size, seq_len, device, dtype))
        with torch.random.fork_rng(devices=[]):
            wanted = contract(batch_size, seq_len, device, dtype)
        if given.keys() != wanted.keys():
            raise ValueError(f"it returns {', '.join(given)} where {', '.join(wanted)} are wanted")
        for name, value in wanted.items():
            found = given[name]
            if not isinstance(found, torch.Tensor) or found.shape != value.shape or found.dtype != value.dtype:
                raise ValueError(f"its {name} is no {value.dtype} tensor of shape {list(value.shape)}")
            random = name == "hidden_states"
            if not (
                found.isfinite().all() and (found.numel() < 2 or found.std() > 0) if random else found.equal(value)
            ):
                raise ValueError(f"its {name} is not {'finite and spread' if random else 'as the contract says'}")
        return given

    return random_inputs


# --- builders, for components that have no get_random_inputs of their own ---------------------------------------------


def hidden_states(width: int) -> RandomInputs:
    """Standard normal `hidden_states` `[batch, seq, width]`."""

    def random_inputs(
        batch_size: int, seq_len: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Inputs:
        return {"hidden_states": torch.randn(batch_size, seq_len, width, device=device, dtype=dtype)}

    return random_inputs


def token_ids(vocab_size: int) -> RandomInputs:
    """Uniform `input_ids` `[batch, seq]`."""

    def random_inputs(
        batch_size: int, seq_len: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Inputs:
        return {"input_ids": torch.randint(vocab_size, (batch_size, seq_len), device=device)}

    return random_inputs


def attention_inputs(width: int) -> RandomInputs:
    """Standard normal hidden states, positions 0, 1, 2, … and a causal mask: what attention and a whole block take."""

    def random_inputs(
        batch_size: int, seq_len: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Inputs:
        dtype = dtype or torch.float32
        hidden = torch.ones(seq_len, seq_len, dtype=torch.bool, device=device).triu(1)
        mask = torch.zeros(batch_size, 1, seq_len, seq_len, device=device, dtype=dtype)
        return {
            "hidden_states": torch.randn(batch_size, seq_len, width, device=device, dtype=dtype),
            "position_ids": torch.arange(seq_len, device=device).expand(batch_size, -1),
            "attention_mask": mask.masked_fill(hidden, torch.finfo(dtype).min),
        }

    return random_inputs


def prompt_context(part: PromptSpan) -> Inputs:
    """Positions `[1, seq]` and a causal mask `[1, 1, seq, keys]`, as Hugging Face's model gives them to its blocks."""
    seen = torch.ones(part.stop - part.start, part.stop, dtype=torch.bool).tril(part.start)
    mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, LOWEST)
    return {"position_ids": torch.arange(part.start, part.stop).unsqueeze(0), "attention_mask": mask}


# --- the stress case: what random inputs hide -------------------------------------------------------------------------


def stress_tokens(vocab_size: int, special: Sequence[int | None] = ()) -> Stress:
    """The first and the last id, special ones, and one again and again: an off-by-one table or a dropped row shows."""

    def stress(inputs: Inputs, _: InputSpec) -> Inputs:
        ids = inputs["input_ids"].clone()
        edges = [0, vocab_size - 1, *(token for token in special if token is not None and token < vocab_size)]
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
    """For the MLP: rows from small to large, so that activations cover −9 … 9, where gelu's variants part."""
    sizes = torch.logspace(-1, 1.2, inputs["hidden_states"].shape[1]).unsqueeze(-1)
    return {**inputs, "hidden_states": inputs["hidden_states"] * sizes}


def stress_attention(inputs: Inputs, recipe: InputSpec) -> Inputs:
    """Scores that spread, positions with gaps that differ by row, a soft mask under the causal one, left padding.

    Without it attention is almost uniform; an ignored `position_ids` and a mask added after scaling do not show.
    """
    return {
        **stress_context(inputs, recipe),
        "hidden_states": inputs["hidden_states"] * recipe.spread,
    }


def stress_block(inputs: Inputs, recipe: InputSpec) -> Inputs:
    """The rows of layer norm's stress with the positions and the mask of attention's."""
    return {**stress_context(inputs, recipe), **stress_rows({"hidden_states": inputs["hidden_states"]}, recipe)}


def stress_context(inputs: Inputs, recipe: InputSpec) -> Inputs:
    """Positions and mask of the stress case; hidden states as they come."""
    batch, seq = inputs["hidden_states"].shape[:2]
    positions = torch.stack([torch.randperm(recipe.n_positions)[:seq].sort().values for _ in range(batch)])
    positions[:, -1] = recipe.n_positions - 1  # the table's last row
    given = inputs["attention_mask"]
    soft = torch.randn(given.shape) * 2
    # By masked_fill: the sum of two lowest values would overflow.
    mask = soft.masked_fill(given <= LOWEST, LOWEST)
    padding = seq // 4
    if padding:
        mask[-1, :, :, :padding] = LOWEST
    return {**inputs, "position_ids": positions, "attention_mask": mask}
