"""One row of the exam's table: a candidate whose fault is known, or one that is known to be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SeededCandidate = Callable[..., Any]
"""What `--bridge` takes: an attention bridge class, or a function that takes a booted bridge and returns it."""

IN_OTHER_CASES = {
    "softmax": {"attn_dropout"},
    "output": {"resid_dropout", "result", "result_sum"},
    "mlp_out": {"resid_dropout"},
}
"""Where a stage is judged together with what follows it, or in parts: its names in `train` and `gated`."""

ATTENTION = ("attn", "block")
"""The kinds of component in which a fault of attention must show."""


@dataclass(frozen=True)
class Entry:
    """A candidate of the exam, defined at the top of its module so that `--bridge` finds it by name."""

    candidate: SeededCandidate
    kinds: tuple[str, ...]
    """The kinds of component that it concerns."""

    @property
    def name(self) -> str:
        return self.candidate.__name__

    @property
    def subject(self) -> str:
        """What it is about: its module's name in words."""
        return self.candidate.__module__.rpartition(".")[2].replace("_", " ")

    @property
    def bridge(self) -> str:
        """Its name for `--bridge`."""
        return f"{self.candidate.__module__}:{self.name}"


@dataclass(frozen=True)
class Fault(Entry):
    """A candidate that is wrong in one known way."""

    stages: frozenset[str]
    """The stages that may be blamed."""
    case: str = "default"
    """The first case in which it can show."""

    def may_be(self, blamed: str) -> bool:
        """Whether blaming a stage is right, under the name that it has in the case at hand."""
        return blamed in self.stages or any(blamed in IN_OTHER_CASES.get(stage, ()) for stage in self.stages)


@dataclass(frozen=True)
class Variant(Entry):
    """A candidate that computes the same in another way, and holds every bound."""


def fault(candidate: SeededCandidate, *stages: str, kinds: tuple[str, ...] = ATTENTION, case: str = "default") -> Fault:
    """A row of the table."""
    return Fault(candidate, kinds, frozenset(stages), case)
