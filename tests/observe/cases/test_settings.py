"""Faults that need a setting: of dropout and flags in `train` and `gated`, of interventions in `patched`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from verifying import failed, of, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import CellResult
from cgverify.observe.conditions import Patch
from cgverify.observe.taps import Observation, watch_hooks
from cgverify.selftest.seeded.seeding import attention, changed, rehooked

# --- train and gated --------------------------------------------------------------------------------------------------

RatesExchanged = attention(
    _apply_attn_dropout=lambda bridge, _, pattern: nn.functional.dropout(
        pattern, bridge.original_component.resid_dropout.p, bridge.training
    )
)
"""The pattern is dropped out at the rate of the residual branch."""


class _DropsAlways(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=True)


drops_in_eval = changed(lambda bridge: setattr(bridge.blocks[0].mlp.original_component, "dropout", _DropsAlways(0.0)))
"""The MLP drops out in both modes, which shows only if its rate is not 0."""

ResultsIgnoredInTraining = attention(
    _output=lambda bridge, output, z: (
        bridge.original_component.resid_dropout(bridge.o(z)) if bridge.training else output(z)
    )
)
"""`use_attn_result` has no effect in training."""


class FlagsIgnoredWithCache(CodeGenAttentionBridge):
    """`use_attn_result` has no effect if there is a cache."""

    def _extend_cache(self, *args: Any) -> Any:
        self._cached = True
        return super()._extend_cache(*args)

    def _output(self, z: Tensor) -> Tensor:
        cached, self._cached = getattr(self, "_cached", False), False
        output: Tensor = self.original_component.resid_dropout(self.o(z)) if cached else super()._output(z)
        return output


# --- patched ----------------------------------------------------------------------------------------------------------

Z, PATTERN, VALUES = "blocks.0.attn.o.hook_in", "blocks.0.attn.hook_pattern", "blocks.0.attn.v.hook_out"


def _unless(ignored: Callable[[], bool]) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    def call(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        returned = show(x)
        return x if ignored() else returned

    return call


def _shows_a_copy(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    copy = x.clone()
    returned = show(copy)
    return x if returned.data_ptr() == copy.data_ptr() else returned


def _catches(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        return show(x)
    except Exception:
        return x


ignored_in_training = changed(
    lambda bridge: rehooked(Z, _unless(lambda attn=bridge.blocks[0].attn: bool(attn.training)))(bridge)  # type: ignore[misc]
)
"""What `hook_z` returns is not used in training."""
ignored_under_autocast = rehooked(Z, _unless(lambda: torch.is_autocast_enabled("cpu")))
"""What `hook_z` returns is not used under autocast."""
ignored_under_a_flag = changed(
    lambda bridge: rehooked(Z, _unless(lambda attn=bridge.blocks[0].attn: bool(attn.config.use_attn_result)))(bridge)  # type: ignore[misc]
)
"""What `hook_z` returns is not used under `use_attn_result`."""
ignored_if_removed = changed(
    lambda bridge: rehooked(Z, _unless(lambda point=bridge.blocks[0].attn.o.hook_in: not point._forward_hooks))(bridge)  # type: ignore[misc]
)
"""What a hook of `hook_z` returns is not used if it has removed itself."""


@changed
def ignored_after_another(bridge: Any) -> None:
    """What `hook_pattern` returns is not used if `hook_v` has returned another tensor."""
    is_other = [False]

    def noted(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        returned = show(x)
        is_other[0] = not torch.equal(returned, x)
        return returned

    rehooked(VALUES, noted)(bridge)
    rehooked(PATTERN, _unless(lambda: is_other[0]))(bridge)


edits_are_lost = rehooked(Z, _shows_a_copy)
"""`hook_z` shows a copy, which is used only if the hook returns another tensor."""
errors_are_swallowed = rehooked(Z, _catches)
"""What a hook raises at `hook_z` is caught."""

strides_are_assumed = rehooked(PATTERN, lambda show, x: torch.as_strided(show(x), x.shape, x.stride()))
"""The pattern that a hook returns is read as if it were contiguous."""


def _if_alike(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    returned = show(x)
    return returned if returned.dtype == x.dtype else x


other_dtypes_are_ignored = rehooked(Z, _if_alike)
"""What `hook_z` returns in another dtype is not used."""
ValuesCutOff = attention(_mix=lambda _, mix, pattern, value: mix(pattern, value.clamp(-40, 40)))
"""Values are limited to 40 after their hook."""


SEEN_IN: dict[str, tuple[str, set[str]]] = {
    "RatesExchanged": ("train", {"forward", "with a cache", "use_attn_result", "use_split_qkv_input", "use_attn_in"}),
    "drops_in_eval": ("train", {"eval"}),
    "ResultsIgnoredInTraining": ("train", {"use_attn_result"}),
    "FlagsIgnoredWithCache": ("gated", {"use_attn_result prefill"}),
    "ignored_in_training": ("patched", {"hook_z in settings"}),
    "ignored_under_autocast": ("patched", {"hook_z autocast"}),
    "ignored_under_a_flag": ("patched", {"hook_z in settings"}),
    "ignored_if_removed": ("patched", {"hook_z in settings"}),
    "ignored_after_another": ("patched", {"hook_v in settings"}),
    "edits_are_lost": ("patched", {"hook_z edited"}),
    "errors_are_swallowed": ("patched", {"hook_z"}),
    "other_dtypes_are_ignored": ("patched", {"hook_z"}),
    "strides_are_assumed": ("patched", {"hook_pattern in settings"}),
    "ValuesCutOff": ("patched", {"hook_v in settings"}),
}
"""The case and the steps that must show each."""


@pytest.fixture(scope="module")
def seeded() -> list[CellResult]:
    found: list[CellResult] = []
    for case, kinds in (("train", ["attn", "mlp"]), ("gated", ["attn"]), ("patched", ["attn"])):
        names = [f"{__name__}:{name}" for name, (own, _) in SEEN_IN.items() if own == case]
        found += verify(cases=[case], candidates=names, components=kinds)
    return found


@pytest.mark.parametrize("fault", SEEN_IN)
def test_fault_is_seen_in_its_setting_alone(seeded: list[CellResult], fault: str) -> None:
    case, expected = SEEN_IN[fault]
    steps = {finding.step for finding in failed(of(seeded, candidate=f"{__name__}:{fault}", case=case))}
    assert expected <= {step.removesuffix(" and not returned") for step in steps}
    kinds = tuple({step.partition(" ")[2] for step in expected} if case == "patched" else expected)
    assert all(kinds == ("",) or step.removesuffix(" and not returned").endswith(kinds) for step in steps)


def test_flag_without_effect_in_training_is_seen() -> None:
    name = "cgverify.selftest.seeded.dropout_flags:branch_flag_ignored_in_training"
    found = failed(verify(cases=["patched"], candidates=[name], components=["block"]))
    message = "hook_mlp_in never fires in these settings, and does in others"
    assert {(finding.step, finding.message) for finding in found} == {("hook_mlp_in in settings", message)}


class _EachHookAlone(HookPoint):  # type: ignore[misc]
    """Shows each hook what was there before all of them."""

    def __call__(self, x: Tensor) -> Tensor:
        returned = [hook(self, (x,), x) for hook in self._forward_hooks.values()]
        return next((each for each in returned if each is not None), x)


def test_second_hook_must_be_shown_what_the_first_returned() -> None:
    for point, wrong in ((HookPoint(), 0), (_EachHookAlone(), 1)):
        seen = Observation()
        with watch_hooks({"hook": point}, seen, {"hook": Patch("hook", 0, is_followed=True)}):
            point(torch.ones(2, 3))
        assert [name for name, _ in seen.violations] == ["hook"] * wrong
