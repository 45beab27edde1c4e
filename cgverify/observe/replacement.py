"""The stages of a forward in which a hook replaced a tap: those from the replaced tap on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from cgverify.observe.stages import Compute, Oracle, Stage, TapFunction, TensorsByName, WeightProduct, unchanged
from cgverify.oracle.arithmetic import Expected, exact_input, exact_output
from cgverify.oracle.fused_qkv import projected_heads
from cgverify.oracle.layer_norm import affine, normalized_by
from cgverify.oracle.parameters import Parameters


def stages_after_replacing(
    tap: str, stages: tuple[Stage, ...], kind: str, second: str | None = None
) -> tuple[Stage, ...]:
    """Return the stages of a kind of component that judge a forward in which a hook replaced `tap`.

    The first is that of the tap itself, which must show the replacement. Later taps need not exist: other cases ask
    for them.

    Args:
        second: a later tap that another hook replaced as well.
    """
    return tuple(_from(tap, stages, _direct_steps(kind), second))


def _from(
    tap: str, stages: tuple[Stage, ...], direct: Mapping[str, Mapping[str, Oracle]], second: str | None
) -> Iterator[Stage]:
    start = next(place for place, stage in enumerate(stages) if stage.tap == tap)
    steps = direct.get(tap, {})
    yield Stage("patched", tap, unchanged(tap), stages[start].axes, stages[start].required)
    for stage in stages[start + 1 :]:
        if stage.tap == second:
            yield Stage("patched", second, unchanged(second), stage.axes, stage.required)
            steps = direct.get(second, {})
        else:
            yield replace(stage, oracle=steps.get(stage.tap, stage.oracle), required=False)


def _direct_steps(kind: str) -> dict[str, dict[str, Oracle]]:
    """By replaced tap: the oracles of next taps whose stage in the table starts from a tap before the replaced one."""
    attn, mlp = ("attn.", "mlp.") if kind == "block" else ("", "")
    of_attention = _attention_steps(attn)
    of_mlp: dict[str, dict[str, Oracle]] = {
        f"{mlp}in.hook_in": {f"{mlp}in.hook_out": WeightProduct(f"{mlp}in.hook_in", "mlp.in")},
        f"{mlp}out.hook_out": {f"{mlp}hook_out": unchanged(f"{mlp}out.hook_out")},
    }
    of_kind: dict[str, dict[str, dict[str, Oracle]]] = {
        "attn": of_attention,
        "mlp": of_mlp,
        "block": of_attention | of_mlp | _norm_steps("ln1.", "ln1"),
        "unembed": {"hook_out": {"returned": unchanged("hook_out")}},
        **{norm: _norm_steps("", norm) for norm in ("ln1", "ln_final")},
    }
    return of_kind.get(kind, {})


def _attention_steps(prefix: str) -> dict[str, dict[str, Oracle]]:
    """The direct steps of attention with hooks under `prefix`."""
    out, product, hidden = (f"{prefix}{name}" for name in ("hook_out", "o.hook_out", "hook_hidden_states"))
    fused_in, fused_out = f"{prefix}qkv.hook_in", f"{prefix}qkv.hook_out"

    def part(w: str) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            own = projected_heads(side[fused_out], w, parameters.n_heads)
            return exact_output(own, own.dtype)

        return TapFunction(compute)

    return {
        fused_in: {
            **{f"{prefix}{w}.hook_in": unchanged(fused_in) for w in "qkv"},
            **{f"{prefix}hook_{w}": WeightProduct(fused_in, f"attn.{w}") for w in "qkv"},
        },
        fused_out: {f"{prefix}hook_{w}": part(w) for w in "qkv"},
        **{
            f"{prefix}{w}.hook_in": {f"{prefix}hook_{w}": WeightProduct(f"{prefix}{w}.hook_in", f"attn.{w}")}
            for w in "qkv"
        },
        product: {out: unchanged(product), hidden: unchanged(product)},
        hidden: {out: unchanged(hidden)},
    }


def _norm_steps(prefix: str, weight: str) -> dict[str, dict[str, Oracle]]:
    """The direct steps of a layer norm with hooks under `prefix`."""
    into, out = f"{prefix}hook_in", f"{prefix}hook_out"
    scale, normalized = f"{prefix}hook_scale", f"{prefix}hook_normalized"

    def scaled(side: TensorsByName, _: Parameters) -> Expected:
        return normalized_by(side[into], side[scale])

    def with_gain_and_bias(x_hat: Compute) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            return affine(x_hat(side, parameters), *parameters.gain_and_bias(weight), side[into].dtype)

        return TapFunction(compute)

    return {
        scale: {normalized: TapFunction(scaled), out: with_gain_and_bias(scaled)},
        normalized: {out: with_gain_and_bias(lambda side, _: exact_input(side[normalized]))},
    }
