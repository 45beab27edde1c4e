"""The table: every kind of component with its place on both sides, its probes and its stages.

| kind | bridge | Hugging Face |
|---|---|---|
| embed | `embed` | `transformer.wte` |
| ln1 | `blocks.N.ln1` | `transformer.h.N.ln_1` |
| attn | `blocks.N.attn` | `transformer.h.N.attn` |
| attn.q, attn.k, attn.v | `blocks.N.attn.q`, … | what `_split_heads` makes of `qkv_proj`'s output |
| attn.o | `blocks.N.attn.o` | `transformer.h.N.attn.out_proj` |
| mlp, mlp.in, mlp.out | `blocks.N.mlp`, … | `transformer.h.N.mlp`, `fc_in`, `fc_out` |
| block | `blocks.N` | `transformer.h.N` |
| ln_final, unembed | `ln_final`, `unembed` | `transformer.ln_f`, `lm_head` |
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import CodeGenConfig

from cgverify.observe import gradients, stages
from cgverify.observe.conditions import PLAIN, Conditions, Cotangent, under
from cgverify.observe.inputs import (
    RandomInputs,
    Stress,
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
from cgverify.observe.taps import Observation, Taps, attention_taps, hooks_of, observe, watch_io

See = Callable[[str, torch.Tensor], None]
WatchTaps = Callable[[Any, See], contextlib.AbstractContextManager[None]]

CANDIDATE_NAMES = {"q.hook_out": "hook_q", "k.hook_out": "hook_k", "v.hook_out": "hook_v", "o.hook_in": "hook_z"}
"""TransformerLens's aliases on attention: a tap bears the name that researchers use."""

_ATTENTION_PATHS = [prefix + path for prefix in ("", "attn.") for path in CANDIDATE_NAMES]

HOOK_ALIASES = {
    "attn": {alias: path for path, alias in CANDIDATE_NAMES.items()},
    "mlp": {"hook_pre": "in.hook_out", "hook_post": "out.hook_in"},
    "block": {
        "hook_resid_pre": "hook_in",
        "hook_resid_post": "hook_out",
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_out": "mlp.hook_out",
    },
}
"""Other names of hooks, by which researchers ask for them, and the hooks that they must lead to."""


@dataclass(frozen=True)
class Component:
    """One row of the table."""

    kind: str
    bridge_path: str
    """In a one-block bridge: `blocks.0.attn`."""
    reference_path: str
    """In a one-block `CodeGenForCausalLM`."""
    watch: WatchTaps
    """Show the reference's taps while its module runs."""
    random_inputs: Callable[[CodeGenConfig], RandomInputs]
    stress: Callable[[CodeGenConfig], Stress]
    stages: Callable[[bool], tuple[Stage, ...]]
    """Given whether there is a cache."""
    projection: str | None = None
    """For q, k and v, which have no module in Hugging Face: the tap of attention that is their output."""

    def run_candidate(
        self, bridge: Any, inputs: dict[str, Any], cache: Any, layer: int | None, conditions: Conditions = PLAIN
    ) -> Observation:
        """Run the bridge's component on inputs and observe it, and note what further forwards show to be amiss.

        Nobody listens in the second forward but a hook that patches: it must come to the same. What was shown in the
        first must still be what it was after a third, on other inputs. What is part of attention or MLP goes through
        these as a part of them.

        Args:
            conditions: under which it runs; a patch is named by the tap that it replaces.
        """
        node = bridge.get_submodule(self.bridge_path)
        device = next(value.device for value in inputs.values())
        patches = {} if conditions.patch is None else {self.hook_path(conditions.patch.tap): conditions.patch}

        def forward(inputs: dict[str, Any], cache: Any, seen: Observation) -> Taps:
            try:
                if conditions.cotangent is None:
                    returned = self._call(node, inputs, cache)
                else:
                    weights = gradients.candidate_weights(bridge.blocks[0], self.kind)
                    returned = self._call_and_differentiate(
                        node, inputs, weights, bridge.cfg.n_heads, conditions.cotangent, seen
                    )
                return record_returned(returned, seen)
            finally:  # a candidate may fail on what it put into the cache
                record_cache(cache, layer, self._attention_prefix, seen.see)

        def run(observation: Observation) -> None:
            spare = copy.deepcopy((inputs, cache)) if self.stands_alone else None
            with under(conditions, node, device, bridge.cfg), hooks_of(node, observation, patches) as shown:
                kept = forward(inputs, cache, observation)
            if conditions.cotangent is not None:
                required = {self.hook_path(stage.tap) for stage in self.stages(False) if stage.required}
                observation.violations += [
                    (name, f"{name} is shown cut off from autograd: no gradient arrives there")
                    for name, tensor in shown.items()
                    if name in required and not tensor.requires_grad
                ]
            if spare is None:
                return
            alone = Observation()
            with under(conditions, node, device, bridge.cfg), hooks_of(node, alone, patches, alone=True):
                forward(*spare, alone)
            observation.violations += alone.differences_from(observation)
            if conditions == PLAIN and cache is None:
                self._call(node, {name: value.flip(1) for name, value in inputs.items()}, None)
                observation.violations += observation.overwritten({**shown, **kept})

        observation = observe(run, inputs)
        observation.violations += [
            (alias, f"{alias} is not the hook {path} that it must be another name of")
            for alias, path in HOOK_ALIASES.get(self.kind, {}).items()
            if getattr(node, alias, None) is not node.get_submodule(path)
        ]
        self.name_taps(observation)
        return observation

    def run_reference(
        self, model: nn.Module, inputs: dict[str, Any], cache: Any, layer: int | None, conditions: Conditions = PLAIN
    ) -> Observation:
        """Run Hugging Face's module on inputs and observe it; flags and patches of the conditions are not for it."""
        device = next(value.device for value in inputs.values())

        def run(observation: Observation) -> None:
            module = model.get_submodule(self.reference_path)
            if self.projection is not None:
                with under(conditions.of_reference, module, device):
                    self._run_projection(module, inputs, observation)
                return
            with under(conditions.of_reference, module, device), self.watch(module, observation.see):
                if conditions.cotangent is None:
                    returned = self._call(module, inputs, cache)
                else:
                    block = model.get_submodule("transformer.h.0")
                    weights = gradients.reference_weights(block, self.kind)
                    heads = block.get_submodule("attn").num_attention_heads
                    returned = self._call_and_differentiate(
                        module, inputs, weights, cast(int, heads), conditions.cotangent, observation
                    )
            record_returned(returned, observation)
            record_cache(cache, layer, self._attention_prefix, observation.see)

        return observe(run, inputs)

    @property
    def stands_alone(self) -> bool:
        """Whether it is no part of attention or MLP."""
        return "." not in self.kind

    @property
    def _attention_prefix(self) -> str:
        return "attn." if self.kind == "block" else ""

    def _call(self, module: nn.Module, inputs: dict[str, Any], cache: Any) -> Any:
        first, *rest = inputs
        context = {name: inputs[name] for name in rest}
        if cache is not None:
            context |= {"layer_past": cache, "use_cache": True}
        if self.kind == "attn":  # a block calls its attention by keywords
            return module(**{first: inputs[first]}, **context)
        return module(inputs[first], **context)

    def _call_and_differentiate(
        self,
        module: nn.Module,
        inputs: dict[str, Any],
        weights: gradients.Weights,
        n_heads: int,
        cotangent: Cotangent,
        observation: Observation,
    ) -> Any:
        """Call, and see the gradients of sum(output · cotangent) in the hidden states and the weights."""
        leaf = inputs["hidden_states"].detach().clone().requires_grad_()
        with gradients.recorded(weights):
            returned = self._call(module, inputs | {"hidden_states": leaf}, None)
            observation.over = True
            output = returned[0] if isinstance(returned, tuple) else returned
            for name, tap in gradients.taps(output, cotangent(output), leaf, weights, n_heads).items():
                observation.see(name, tap)
        return returned

    def _run_projection(self, attention: Any, inputs: dict[str, Any], observation: Observation) -> None:
        """Run the whole attention, without mask and at any positions, for the one tensor that comes before both."""
        hidden = inputs["hidden_states"]
        positions = torch.zeros(1, hidden.shape[1], dtype=torch.long, device=hidden.device)
        observation.returned = "a tensor"

        def see(name: str, tensor: torch.Tensor) -> None:
            if name == "hook_in":
                observation.see("hook_in", tensor)
            elif name == self.projection:
                observation.see("hook_out", tensor)
                observation.see("returned", tensor.flatten(-2))

        with attention_taps(attention, see):
            attention(hidden, position_ids=positions)

    def hook_path(self, tap: str) -> str:
        """The hook, by its path in the component, that a tap of the stages is seen at."""
        return next((path for path in _ATTENTION_PATHS if self._tap_name(path) == tap), tap)

    def name_taps(self, observation: Observation) -> None:
        """Give what was seen of a bridge's hooks the names and shapes that it has in the stages."""
        observation.taps = {self._tap_name(name): tap for name, tap in observation.taps.items()}
        if self.kind == "attn.o" and "hook_in" in observation.taps:  # shown by heads, as hook_z
            observation.taps["hook_in"] = observation.taps["hook_in"].flatten(2)
        observation.silent_hooks = [self._tap_name(name) for name in observation.silent_hooks]

    def _tap_name(self, name: str) -> str:
        """The name that a hook's tap has in the stages."""
        prefix = self._attention_prefix
        if self.kind not in ("attn", "block") or not name.startswith(prefix):
            return name
        own = name.removeprefix(prefix)
        return prefix + CANDIDATE_NAMES.get(own, own)


def record_returned(returned: Any, observation: Observation) -> Taps:
    """Show what a module returned, and give it by name: its first part and, for attention and blocks, the pattern."""
    parts = returned if isinstance(returned, tuple) else (returned,)
    observation.returned = f"a tuple of {len(parts)}" if isinstance(returned, tuple) else "a tensor"
    named = zip(("returned", "returned_pattern"), parts, strict=False)
    tensors = {name: part for name, part in named if isinstance(part, torch.Tensor)}
    for name, part in tensors.items():
        observation.see(name, part)
    return tensors


def record_cache(cache: Any, layer: int | None, prefix: str, see: See) -> None:
    """Show what a cache holds of a layer, under the names of the stages."""
    if cache is not None and layer is not None and len(cache.layers) > layer and cache.layers[layer].is_initialized:
        see(f"{prefix}cache_keys", cache.layers[layer].keys)
        see(f"{prefix}cache_values", cache.layers[layer].values)


# --- the reference's taps ---------------------------------------------------------------------------------------------


def _under(prefix: str, see: See) -> See:
    return lambda name, tensor: see(prefix + name, tensor)


def _watch_io(module: nn.Module, see: See) -> contextlib.AbstractContextManager[None]:
    return watch_io(module, see, "hook_in", "hook_out")


@contextlib.contextmanager
def _watch_mlp(module: Any, see: See) -> Iterator[None]:
    with (
        _watch_io(module, see),
        watch_io(module.fc_in, see, "in.hook_in", "in.hook_out"),
        watch_io(module.fc_out, see, "out.hook_in", "out.hook_out"),
    ):
        yield


@contextlib.contextmanager
def _watch_block(module: Any, see: See) -> Iterator[None]:
    with (
        _watch_io(module, see),
        _watch_io(module.ln_1, _under("ln1.", see)),
        attention_taps(module.attn, _under("attn.", see)),
        watch_io(module, see, "hook_mlp_in", ""),
        _watch_mlp(module.mlp, _under("mlp.", see)),
    ):
        yield


# --- the rows ---------------------------------------------------------------------------------------------------------


def _hidden(config: CodeGenConfig) -> RandomInputs:
    return hidden_states(config.n_embd)


def _inner(config: CodeGenConfig) -> RandomInputs:
    return hidden_states(config.n_inner or 4 * config.n_embd)


def _attention_inputs(config: CodeGenConfig) -> RandomInputs:
    return attention_inputs(config.n_embd)


def _linear(kind: str, reference_path: str, inputs: Callable[[CodeGenConfig], RandomInputs]) -> Component:
    axes = stages.HEADS if kind in ("attn.q", "attn.k", "attn.v") else stages.RESIDUAL
    stage = {"attn.o": "output", "mlp.in": "mlp_in", "mlp.out": "mlp_out", "unembed": "unembed"}.get(
        kind, f"project_{kind[-1]}"
    )
    checks = (
        stages.copy("input", "hook_in", "given.hidden_states", stages.RESIDUAL),
        stages.linear(stage, "hook_out", "hook_in", kind, axes),
        stages.linear(stage, "returned", "hook_in", kind),
    )
    return Component(
        kind=kind,
        bridge_path=kind if kind == "unembed" else f"blocks.0.{kind}",
        reference_path=reference_path,
        watch=_watch_io,
        random_inputs=inputs,
        stress=lambda _: stress_channels,
        stages=lambda _: checks,
        projection=f"hook_{kind[-1]}" if axes is stages.HEADS else None,
    )


def _norm(kind: str, bridge_path: str, reference_path: str) -> Component:
    return Component(
        kind=kind,
        bridge_path=bridge_path,
        reference_path=reference_path,
        watch=_watch_io,
        random_inputs=_hidden,
        stress=lambda _: stress_rows,
        stages=lambda _: stages.alone(stages.norm("", "given.hidden_states", kind)),
    )


_ROWS = (
    Component(
        kind="embed",
        bridge_path="embed",
        reference_path="transformer.wte",
        watch=_watch_io,
        random_inputs=lambda config: token_ids(config.vocab_size),
        stress=lambda config: stress_tokens(
            config.vocab_size, [config.bos_token_id, getattr(config, "pad_token_id", None)]
        ),
        stages=lambda _: stages.embedding(),
    ),
    _norm("ln1", "blocks.0.ln1", "transformer.h.0.ln_1"),
    Component(
        kind="attn",
        bridge_path="blocks.0.attn",
        reference_path="transformer.h.0.attn",
        watch=attention_taps,
        random_inputs=_attention_inputs,
        stress=lambda _: stress_attention,
        stages=lambda with_cache: (
            *stages.alone(stages.attention("", "given.hidden_states", with_cache)),
            stages.copy("returned", "returned_pattern", "hook_pattern", stages.PATTERN),
        ),
    ),
    _linear("attn.q", "transformer.h.0.attn", _hidden),
    _linear("attn.k", "transformer.h.0.attn", _hidden),
    _linear("attn.v", "transformer.h.0.attn", _hidden),
    _linear("attn.o", "transformer.h.0.attn.out_proj", _hidden),
    Component(
        kind="mlp",
        bridge_path="blocks.0.mlp",
        reference_path="transformer.h.0.mlp",
        watch=_watch_mlp,
        random_inputs=_hidden,
        stress=lambda _: stress_activations,
        stages=lambda _: stages.alone(stages.mlp("", "given.hidden_states")),
    ),
    _linear("mlp.in", "transformer.h.0.mlp.fc_in", _hidden),
    _linear("mlp.out", "transformer.h.0.mlp.fc_out", _inner),
    Component(
        kind="block",
        bridge_path="blocks.0",
        reference_path="transformer.h.0",
        watch=_watch_block,
        random_inputs=_attention_inputs,
        stress=lambda _: stress_block,
        stages=stages.block,
    ),
    _norm("ln_final", "ln_final", "transformer.ln_f"),
    _linear("unembed", "lm_head", _hidden),
)

COMPONENTS: dict[str, Component] = {row.kind: row for row in _ROWS}
