"""The table of components: each kind with its place on both sides, its inputs and its stages.

| kind | bridge | Hugging Face |
|---|---|---|
| embed | `embed` | `transformer.wte` |
| ln1 | `blocks.N.ln1` | `transformer.h.N.ln_1` |
| attn | `blocks.N.attn` | `transformer.h.N.attn` |
| attn.q, attn.k, attn.v | `blocks.N.attn.q`, … | their parts of `qkv_proj`'s output, by head |
| attn.o | `blocks.N.attn.o` | `transformer.h.N.attn.out_proj` |
| mlp, mlp.in, mlp.out | `blocks.N.mlp`, … | `transformer.h.N.mlp`, `fc_in`, `fc_out` |
| block | `blocks.N` | `transformer.h.N` |
| ln_final, unembed | `ln_final`, `unembed` | `transformer.ln_f`, `lm_head` |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import CodeGenConfig

from cgverify.observe import stages
from cgverify.observe.generations import installed
from cgverify.observe.inputs import (
    InputTransform,
    RandomInputs,
    attention_inputs,
    hidden_states,
    stress_activations,
    stress_attention,
    stress_block,
    stress_channels,
    stress_rows,
    stress_tokens,
    token_ids,
)
from cgverify.observe.stages import Stage
from cgverify.observe.taps import Observation, RecordTap, watch_io

WatchReference = Callable[[Any, RecordTap], contextlib.AbstractContextManager[None]]

TAP_NAMES = {"q.hook_out": "hook_q", "k.hook_out": "hook_k", "v.hook_out": "hook_v", "o.hook_in": "hook_z"}
"""TransformerLens's aliases on attention, by the hook's path. A tap has the alias as its name."""

_ATTENTION_PATHS = [prefix + path for prefix in ("", "attn.") for path in TAP_NAMES]

HOOK_ALIASES = {
    "attn": {alias: path for path, alias in TAP_NAMES.items()},
    "mlp": {"hook_pre": "in.hook_out", "hook_post": "out.hook_in"},
    "block": {
        "hook_resid_pre": "hook_in",
        "hook_resid_post": "hook_out",
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_out": "mlp.hook_out",
    },
}
"""By kind: other names that researchers use for a hook, and the path of the hook that each must be."""

FLAG_RESULT, FLAG_MLP_IN = "use_attn_result", "use_hook_mlp_in"

_FLAGGED_ATTENTION_HOOKS = {
    FLAG_RESULT: ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_attn_in": ("hook_attn_in",),
}

FLAGGED_HOOKS: dict[str, dict[str, tuple[str, ...]]] = {
    "attn": _FLAGGED_ATTENTION_HOOKS,
    "block": {
        **{flag: tuple(f"attn.{hook}" for hook in hooks) for flag, hooks in _FLAGGED_ATTENTION_HOOKS.items()},
        FLAG_MLP_IN: ("hook_mlp_in",),
    },
}
"""By kind: the taps that each flag of the bridge's config turns on."""


@dataclass(frozen=True)
class Component:
    """One row of the table."""

    kind: str
    bridge_path: str
    """In a one-block bridge: `blocks.0.attn`."""
    reference_path: str
    """In a one-block `CodeGenForCausalLM`."""
    reference_taps: WatchReference
    """Record the reference's taps while its module runs."""
    random_inputs: Callable[[CodeGenConfig], RandomInputs]
    stress: Callable[[CodeGenConfig], InputTransform]
    stages: Callable[[bool], tuple[Stage, ...]]
    """Given whether there is a cache."""
    projection: str | None = None
    """For q, k and v, which have no module in Hugging Face: the tap of attention that is their output."""

    @property
    def is_part(self) -> bool:
        """Whether it is inside attention or MLP."""
        return "." in self.kind

    @property
    def gradient_inputs(self) -> tuple[str, ...]:
        """The inputs that gradients are always taken in."""
        return () if self.kind == "embed" else ("hidden_states",)

    @property
    def attention_prefix(self) -> str:
        """The prefix of attention's taps."""
        return "attn." if self.kind == "block" else ""

    def hook_path(self, tap: str) -> str:
        """The path in the component of the hook at which a tap is seen."""
        return next((path for path in _ATTENTION_PATHS if self.tap_name(path) == tap), tap)

    def rename_taps(self, observation: Observation) -> None:
        """Rename what was seen at a bridge's hooks as the stages do, and give it the shape that they expect."""
        observation.taps = {self.tap_name(path): tap for path, tap in observation.taps.items()}
        if self.kind == "attn.o" and "hook_in" in observation.taps:  # shown by heads, as hook_z
            observation.taps["hook_in"] = observation.taps["hook_in"].flatten(2)
        observation.silent_hooks = [self.tap_name(path) for path in observation.silent_hooks]

    def tap_name(self, path: str) -> str:
        """Return the tap that is seen at the hook with a path in the component."""
        prefix = self.attention_prefix
        if self.kind not in ("attn", "block") or not path.startswith(prefix):
            return path
        own = path.removeprefix(prefix)
        return prefix + TAP_NAMES.get(own, own)


# --- the reference's taps ---------------------------------------------------------------------------------------------


def _under(prefix: str, record: RecordTap) -> RecordTap:
    return lambda name, tensor: record(prefix + name, tensor)


def _ends(module: nn.Module, record: RecordTap) -> contextlib.AbstractContextManager[None]:
    return watch_io(module, record, "hook_in", "hook_out")


def _attention_taps(module: Any, record: RecordTap) -> contextlib.AbstractContextManager[None]:
    return installed().attention_taps(module, record)


@contextlib.contextmanager
def _mlp_taps(module: Any, record: RecordTap) -> Iterator[None]:
    with (
        _ends(module, record),
        _ends(module.fc_in, _under("in.", record)),
        _ends(module.fc_out, _under("out.", record)),
    ):
        yield


@contextlib.contextmanager
def _block_taps(module: Any, record: RecordTap) -> Iterator[None]:
    with (
        _ends(module, record),
        _ends(module.ln_1, _under("ln1.", record)),
        _attention_taps(module.attn, _under("attn.", record)),
        watch_io(module, record, "hook_mlp_in", None),
        _mlp_taps(module.mlp, _under("mlp.", record)),
    ):
        yield


# --- the rows ---------------------------------------------------------------------------------------------------------


def _hidden(config: CodeGenConfig) -> RandomInputs:
    return hidden_states(config.n_embd)


def _inner(config: CodeGenConfig) -> RandomInputs:
    return hidden_states(config.n_inner or 4 * config.n_embd)


def _attention_inputs(config: CodeGenConfig) -> RandomInputs:
    return attention_inputs(config.n_embd)


def _token_ids(config: CodeGenConfig) -> RandomInputs:
    return token_ids(config.vocab_size)


def _stress_tokens(config: CodeGenConfig) -> InputTransform:
    return stress_tokens(config.vocab_size, [config.bos_token_id, getattr(config, "pad_token_id", None)])


def _returned_pattern(kind: str, tap: str) -> str | None:
    """The tap that a kind of component returns after its output, if it returns the attention pattern."""
    return tap if kind in installed().kinds_with_pattern else None


def _linear(kind: str, stage: str, reference_path: str, inputs: Callable[[CodeGenConfig], RandomInputs]) -> Component:
    by_head = stage.startswith("project_")
    return Component(
        kind=kind,
        bridge_path=kind if kind == "unembed" else f"blocks.0.{kind}",
        reference_path=reference_path,
        reference_taps=_ends,
        random_inputs=inputs,
        stress=lambda _: stress_channels,
        stages=lambda _: stages.single_linear(stage, kind, stages.HEADS if by_head else stages.RESIDUAL),
        projection=f"hook_{kind[-1]}" if by_head else None,
    )


def _norm(kind: str, bridge_path: str, reference_path: str) -> Component:
    return Component(
        kind=kind,
        bridge_path=bridge_path,
        reference_path=reference_path,
        reference_taps=_ends,
        random_inputs=_hidden,
        stress=lambda _: stress_rows,
        stages=lambda _: stages.with_returned(stages.norm("", "given.hidden_states", kind)),
    )


_ROWS = (
    Component(
        kind="embed",
        bridge_path="embed",
        reference_path="transformer.wte",
        reference_taps=_ends,
        random_inputs=_token_ids,
        stress=_stress_tokens,
        stages=lambda _: stages.with_returned(stages.embedding()),
    ),
    _norm("ln1", "blocks.0.ln1", "transformer.h.0.ln_1"),
    Component(
        kind="attn",
        bridge_path="blocks.0.attn",
        reference_path="transformer.h.0.attn",
        reference_taps=_attention_taps,
        random_inputs=_attention_inputs,
        stress=lambda _: stress_attention,
        stages=lambda with_cache: stages.with_returned(
            stages.attention("", "given.hidden_states", with_cache), _returned_pattern("attn", "hook_pattern")
        ),
    ),
    *(_linear(f"attn.{w}", f"project_{w}", "transformer.h.0.attn", _hidden) for w in "qkv"),
    _linear("attn.o", "output", "transformer.h.0.attn.out_proj", _hidden),
    Component(
        kind="mlp",
        bridge_path="blocks.0.mlp",
        reference_path="transformer.h.0.mlp",
        reference_taps=_mlp_taps,
        random_inputs=_hidden,
        stress=lambda _: stress_activations,
        stages=lambda _: stages.with_returned(stages.mlp("", "given.hidden_states")),
    ),
    _linear("mlp.in", "mlp_in", "transformer.h.0.mlp.fc_in", _hidden),
    _linear("mlp.out", "mlp_out", "transformer.h.0.mlp.fc_out", _inner),
    Component(
        kind="block",
        bridge_path="blocks.0",
        reference_path="transformer.h.0",
        reference_taps=_block_taps,
        random_inputs=_attention_inputs,
        stress=lambda _: stress_block,
        stages=lambda with_cache: stages.with_returned(
            stages.block(with_cache), _returned_pattern("block", "attn.hook_pattern")
        ),
    ),
    _norm("ln_final", "ln_final", "transformer.ln_f"),
    _linear("unembed", "unembed", "lm_head", _hidden),
)

COMPONENTS: dict[str, Component] = {row.kind: row for row in _ROWS}
