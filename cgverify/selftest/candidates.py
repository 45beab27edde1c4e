"""The candidates of the self-test: faults, which are wrong in one known way, and variants, which are correct.

References are known in the same way: a fault of a reference must be refused or suspect, and a variant must pass.
`--bridge` finds a candidate by its name at the top level of its module. A class or function that is defined there is
one; `named_candidates` makes others from a table, and `by_name` lets the module export them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cgverify.plan.axes import DTYPES

Implementation = Callable[..., Any]
"""What `--bridge` accepts: an attention bridge class, or a function that takes a booted bridge and returns it."""

Rows = dict[str, tuple[str, Any]]
"""By the name of a fault: a sentence that says what is wrong, and what differs from the correct bridge."""

IN_OTHER_CASES = {
    "softmax": {"attn_dropout"},
    "output": {"resid_dropout", "result", "result_sum"},
    "mlp_out": {"resid_dropout"},
}
"""The names of a stage in `train` and `gated`, where it is judged together with the next stage, or in parts."""

ATTENTION = ("attn", "block")
"""The kinds of component in which a fault of attention must show."""


@dataclass(frozen=True)
class KnownCandidate:
    """A candidate whose verdict is known in advance."""

    candidate: Implementation
    kinds: tuple[str, ...]
    """The kinds of component that it changes."""

    @property
    def name(self) -> str:
        return self.candidate.__name__

    @property
    def subject(self) -> str:
        """The name of its module in words."""
        return self.candidate.__module__.rpartition(".")[2].replace("_", " ")

    @property
    def bridge(self) -> str:
        """Its name for `--bridge`."""
        return f"{self.candidate.__module__}:{self.name}"

    @property
    def sentence(self) -> str:
        """What is wrong with it, or what it computes differently."""
        return (self.candidate.__doc__ or "").strip()


@dataclass(frozen=True)
class Fault(KnownCandidate):
    """A candidate that is wrong in one known way."""

    stages: frozenset[str]
    """The stages that may be blamed."""
    case: str = "default"
    """The first case in which it can show."""

    def allows(self, blamed: str) -> bool:
        """Whether a stage may be blamed, under any of the names that it has in the cases."""
        return blamed in self.stages or any(blamed in IN_OTHER_CASES.get(stage, ()) for stage in self.stages)


@dataclass(frozen=True)
class Unseen:
    """The dtypes in which no case sees a hidden fault, and the reason."""

    reason: str
    dtypes: tuple[str, ...] = DTYPES


@dataclass(frozen=True, kw_only=True)
class HiddenFault(Fault):
    """A fault that one forward on mild inputs of one size does not show, though a user can meet it."""

    shown_by: Callable[[Any], object]
    """Call a bridge of codegen-nano in float32, and return what must differ from the correct bridge's result."""
    cases: tuple[str, ...]
    """The cases that should find it. `--quick` runs no others."""
    layer: int | None = None
    """The layer to verify; None is the one that all faults are verified in."""
    unseen: Unseen | None = None
    """None if a case sees it in every dtype."""

    def is_unseen_in(self, dtype: str) -> bool:
        """Return whether no case is known to see it in a dtype."""
        return self.unseen is not None and dtype in self.unseen.dtypes

    def allows(self, blamed: str) -> bool:
        """Whether a stage may be blamed: its own, the comparison of weights, or what a call did to others."""
        return super().allows(blamed) or blamed in ("weights", "conduct")


@dataclass(frozen=True)
class Hidden:
    """A row in a table of hidden faults; see `HiddenFault`."""

    sentence: str
    candidate: Any
    stages: tuple[str, ...]
    shown_by: Callable[[Any], object]
    kinds: tuple[str, ...] = ATTENTION
    cases: tuple[str, ...] = ()
    """Empty is the table's own."""
    layer: int | None = None


@dataclass(frozen=True)
class Variant(KnownCandidate):
    """A candidate that computes the same function in another way, within every bound."""


@dataclass(frozen=True)
class KnownReference(KnownCandidate):
    """A change of the reference, as a context manager that takes a whole `CodeGenForCausalLM`."""

    @property
    def bridge(self) -> str:
        return "cgverify"


@dataclass(frozen=True)
class ReferenceFault(KnownReference):
    """A reference that does not compute what Hugging Face's class computes, or has other weights than the bridge."""

    named: str
    """What the refusal must name, as a part of its sentence. If the pair is not refused: `Hugging Face's side`."""
    stages: frozenset[str] = frozenset()
    """The stages that may be suspect; none if the pair must be refused."""


@dataclass(frozen=True)
class ReferenceVariant(KnownReference):
    """A reference in a state that changes nothing that it computes."""


def fault(candidate: Implementation, *stages: str, kinds: tuple[str, ...] = ATTENTION, case: str = "default") -> Fault:
    """Return the fault of a candidate that has its name already."""
    return Fault(candidate, kinds, frozenset(stages), case)


def named_candidates(
    module: str, rows: Rows, seed: Callable[[Any], Implementation] = lambda candidate: candidate
) -> list[Implementation]:
    """Return the candidates of a table, with their names.

    Args:
        module: the `__name__` of the module that exports them.
        seed: makes a candidate from what differs. By default, what differs is the candidate.
    """
    candidates = []
    for name, (sentence, difference) in rows.items():
        candidate = seed(difference)
        candidate.__name__ = candidate.__qualname__ = name
        candidate.__doc__, candidate.__module__ = sentence, module
        candidates.append(candidate)
    return candidates


def named_faults(
    module: str,
    rows: Rows,
    *stages: str,
    seed: Callable[[Any], Implementation] = lambda candidate: candidate,
    kinds: tuple[str, ...] = ATTENTION,
    case: str = "default",
) -> list[Fault]:
    """Return the faults of a table that have the same stages, kinds and case. See `named_candidates`."""
    return [fault(candidate, *stages, kinds=kinds, case=case) for candidate in named_candidates(module, rows, seed)]


def named_variants(module: str, *tables: tuple[Rows, tuple[str, ...]]) -> tuple[Variant, ...]:
    """Return the variants of tables, each with its kinds of component. See `named_candidates`."""
    return tuple(Variant(candidate, kinds) for rows, kinds in tables for candidate in named_candidates(module, rows))


def hidden_faults(module: str, rows: dict[str, Hidden], *cases: str) -> list[HiddenFault]:
    """Return the faults of a table.

    Args:
        module: the `__name__` of the module that exports them.
        cases: those that should find a fault, unless its row names others.
    """
    candidates = named_candidates(module, {name: (row.sentence, row.candidate) for name, row in rows.items()})
    return [
        HiddenFault(
            candidate=candidate,
            kinds=row.kinds,
            stages=frozenset(row.stages),
            case=(row.cases or cases)[0],
            shown_by=row.shown_by,
            cases=row.cases or cases,
            layer=row.layer,
        )
        for candidate, row in zip(candidates, rows.values(), strict=True)
    ]


def by_name(known: Iterable[KnownCandidate]) -> Callable[[str], Any]:
    """Return a module's `__getattr__`, which exports candidates by their names."""
    candidates = {each.name: each.candidate for each in known}

    def exported(name: str) -> Any:
        try:
            return candidates[name]
        except KeyError:
            raise AttributeError(f"this module has no attribute {name!r}") from None

    return exported
