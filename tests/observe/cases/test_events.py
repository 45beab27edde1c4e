"""What happens between two calls in `state`, and what a candidate does there that is its own fault or ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from verifying import failed, findings, of, verify

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import Verdict
from cgverify.observe import events
from cgverify.selftest.seeded.seeding import rebuilt


class Raises(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> Any:
        raise ValueError("mine")


class ReturnsNothing(CodeGenAttentionBridge):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        super().forward(*args, **kwargs)


class RemovesHooks(CodeGenAttentionBridge):
    """Removes the hooks of its user when it has run."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        returned = super().forward(*args, **kwargs)
        self.hook_pattern.remove_hooks("fwd", including_permanent=True)
        return returned


class SeedsAsItsCaller(CodeGenAttentionBridge):
    """Seeds torch's generator with the seed that it has."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(torch.initial_seed())
        return super().forward(*args, **kwargs)


class _KnowsItsWeight(CodeGenAttentionBridge):
    def is_doubled(self) -> bool:
        weight = self.o.original_component.weight
        kept: Tensor = self.__dict__.setdefault("_kept", weight.detach().clone())
        return weight.dtype == kept.dtype and torch.equal(weight, 2 * kept)


class NotANumberAfterAnEdit(_KnowsItsWeight):
    def _output(self, z: Tensor) -> Tensor:
        output: Tensor = super()._output(z)
        return output * torch.nan if self.is_doubled() else output


class RaisesAfterAnEdit(_KnowsItsWeight):
    def _output(self, z: Tensor) -> Tensor:
        if self.is_doubled():
            raise ValueError("mine")
        output: Tensor = super()._output(z)
        return output


def _without_parameters(bridge: Any) -> None:
    weight, bias = bridge.ln_final.weight.detach().clone(), bridge.ln_final.bias.detach().clone()

    class Norm(nn.Module):
        def __init__(self, norm: Any) -> None:
            super().__init__()
            self.hook_in, self.hook_out = norm.hook_in, norm.hook_out

        def forward(self, x: Tensor) -> Any:
            return self.hook_out(functional.layer_norm(self.hook_in(x), weight.shape, weight, bias))

    bridge.ln_final = Norm(bridge.ln_final)


norm_without_parameters = rebuilt(_without_parameters)


def messages(name: str, *cases: str, component: str = "attn") -> set[str]:
    """Return what fails; an error is a failure of the test."""
    results = verify(candidates=[f"{__name__}:{name}"], components=[component], cases=cases)
    assert Verdict.ERROR not in {finding.verdict for finding in findings(results)}
    return {finding.message for finding in failed(results)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Raises", "the candidate raised where the reference did not: ValueError: mine"),
        ("ReturnsNothing", "returned never fired"),
        ("NotANumberAfterAnEdit", "hook_out does not double if the weight that makes it is doubled in place"),
        ("RaisesAfterAnEdit", "the candidate raised where the reference did not: ValueError: mine"),
        ("RemovesHooks", "the candidate removed a hook that was attached at hook_pattern"),
    ],
)
def test_fault_in_state_is_the_candidates_own(name: str, message: str) -> None:
    assert message in messages(name, "state")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GradientsLeftOff", "gradients are no longer recorded, or modes are others, after inputs were refused"),
        (
            "mlp_result_of_same_tensor",
            "another tensor is returned for inputs that were edited in place than for copies of them",
        ),
    ],
)
def test_part_of_a_block_goes_through_events_too(name: str, message: str) -> None:
    results = verify(candidates=[f"cgverify.selftest.seeded.state:{name}"], components=["block"], cases=["state"])
    assert {finding.message for finding in failed(results)} == {message}


def test_interrupted_edit_leaves_the_weights_as_they_were() -> None:
    results = verify(candidates=[f"{__name__}:RaisesAfterAnEdit"], components=["block"], cases=["state", "weights"])
    assert failed(of(results, case="state"))
    assert failed(of(results, case="weights")) == []


def test_fault_of_ours_between_two_calls_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: events.CalledComponent) -> Iterator[tuple[str, str]]:
        raise KeyError("ours")

    monkeypatch.setattr(events, "EVENTS", {"nothing happened": broken})
    (result,) = verify(components=["attn"], cases=["state"])
    assert result.verdict is Verdict.ERROR


def test_seed_of_the_caller_is_a_change_of_the_random_state() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        results = verify(candidates=[f"{__name__}:SeedsAsItsCaller"], components=["attn"], cases=["default"])
    assert {one.message for one in failed(results)} == {"the candidate changed torch's random state"}


def test_component_without_parameters_is_verified() -> None:
    assert messages("norm_without_parameters", "state", component="ln_final") == set()


def test_weights_that_cannot_be_found_are_not_compared() -> None:
    name = f"{__name__}:norm_without_parameters"
    (result,) = verify(candidates=[name], components=["ln_final"], cases=["weights"])
    assert result.verdict is Verdict.UNSUPPORTED
    assert "none was compared" in result.findings[0].message
