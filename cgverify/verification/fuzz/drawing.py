"""What Hypothesis draws: sequences of calls, each either new or a variation of one of the last calls.

A call differs from the usual one in a few fields. So a failure is shrunk by taking calls and differences away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import CodeGenConfig

from cgverify.common.records import Cell, Record
from cgverify.observe.events import EVENTS
from cgverify.verification.fuzz import calls
from cgverify.verification.fuzz.calls import Call

WEIGHTS = {"attn": 16, "block": 12, "mlp": 4, "embed": 2, "ln1": 2, "ln_final": 2, "unembed": 2}
"""How often a kind of component is drawn, relative to its parts."""
VARIANTS = 90
"""More than the forwards of any case."""
NEW = -1

Drawn = tuple[int, tuple[int, int], list[dict[str, Any]]]
"""Which of the last calls is varied, or `NEW`; the size of a new call; the fields in which it differs."""


class Example(Record):
    """A sequence of calls on one component."""

    cell: Cell
    calls: tuple[Call, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """What makes one example smaller than another: calls, elements, and everything that is not usual."""
        lengths = sum(call.batch * call.tokens for call in self.calls), sum(len(str(call)) for call in self.calls)
        return len(self.calls), *lengths

    def python(self, model: str) -> str:
        """Return Python code that runs the example on a new instance."""
        cell = self.cell
        given = [call.model_dump(exclude_defaults=True).items() for call in self.calls]
        calls = "".join(f"    Call({', '.join(f'{name}={value!r}' for name, value in one)}),\n" for one in given)
        where = f"{model!r}, {cell.candidate!r}, {cell.component!r}, {cell.dtype!r}"
        return (
            "from cgverify.verification.fuzz import Call, replay\n\n"
            f"calls = [\n{calls}]\n"
            f"result = replay({where}, calls, seed={cell.seed})\n"
            "print(result.verdict.value, result.blame)\n"
        )


def examples(cells: Sequence[Cell], config: CodeGenConfig) -> Any:
    """Return the strategy of Hypothesis that draws calls on one of some components."""
    from hypothesis import strategies as st

    def some(name: str, values: Sequence[Any]) -> Any:
        return st.sampled_from([{name: value} for value in values])

    modes = [{"mode": mode, "variant": at} for mode in calls.MODES[2:] for at in range(VARIANTS)]
    differences = st.one_of(
        some("cache", calls.CACHES[1:]),
        some("cache", calls.CACHES[1:]),
        some("use", calls.USES[1:]),
        some("seed", (1, 2)),
        some("values", calls.VALUES[1:]),
        some("values", calls.VALUES[1:]),
        some("positions", calls.POSITIONS[1:]),
        some("mask", calls.MASKS[1:]),
        some("span", calls.SPANS[1:]),
        st.sampled_from([{"by_row": True}, {"strided": True}]),
        st.sampled_from([{"mode": calls.GRADIENTS}, *modes]),
        st.sampled_from(modes),
        some("event", tuple(EVENTS)),
        some("event", tuple(EVENTS)),
    )
    small = st.tuples(st.integers(1, 5), st.integers(1, 8))  # two numbers: equal ones are shrunk together
    size = st.one_of(*[small] * 10, *map(st.sampled_from, sizes(config)))
    drawn = st.tuples(st.sampled_from((NEW, NEW, 0, 0, 1, 2)), size, st.lists(differences, max_size=3))
    # Hypothesis draws about six elements of a list, and a process is forked for each sequence.
    sequences = st.lists(st.lists(drawn, min_size=1, max_size=12), min_size=1, max_size=6)
    weighted = [cell for cell in cells for _ in range(WEIGHTS.get(cell.kind, 1))]
    return st.builds(Example, cell=st.sampled_from(weighted), calls=sequences.map(_joined))


def _joined(drawn: list[list[Drawn]]) -> tuple[Call, ...]:
    joined: list[Call] = []
    for last, (batch, tokens), differences in (one for part in drawn for one in part):
        fields = {name: value for one in differences for name, value in one.items()}
        new = Call(batch=batch, tokens=tokens)
        varied = joined[-1 - last].plainly if NEW < last < len(joined) else new
        joined.append(varied.model_copy(update=fields))
    return tuple(joined)


def sizes(config: CodeGenConfig) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return larger pairs of batch size and tokens: those near numbers of a model's heads, and long ones."""
    heads, width = config.n_head, config.n_embd // config.n_head
    near = [(batch, size + by) for size in (heads, width) for batch in (1, 2, heads) for by in (-1, 0, 1)]
    edges = {power + by for power in (16, 32, 64, 128, 256) for by in (-1, 0, 1)}
    return near, [(batch, tokens) for tokens in sorted({*edges, *range(20, 301, 13)}) for batch in (1, 2)]
