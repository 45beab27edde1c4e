"""Make a failing sequence of calls smaller: without calls, with plainer ones, with smaller sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from cgverify.verification.fuzz.calls import Call

Calls = tuple[Call, ...]


def size(calls: Calls) -> tuple[int, int, int]:
    """Return what makes one sequence smaller than another: calls, elements, and everything that is not usual."""
    return len(calls), sum(call.batch * call.tokens for call in calls), sum(len(str(call)) for call in calls)


def shrink(
    calls: Calls,
    until_failure: Callable[[Calls], Calls],
    settled: Callable[[Calls], Calls],
    is_over: Callable[[], bool],
) -> Calls:
    """Return a failing sequence of which no simpler one fails, unless the time is over.

    Args:
        until_failure: runs a sequence and returns its calls up to the one that fails, or nothing.
        settled: returns a sequence without what has no effect.
    """
    tried: set[Calls] = set()
    smallest: Calls = ()
    while calls != smallest:
        smallest = calls
        for simpler in map(settled, _simpler(smallest)):
            if is_over():
                return smallest
            if simpler in tried or not simpler or size(simpler) >= size(smallest):
                continue
            tried.add(simpler)
            if failing := until_failure(simpler):
                calls = failing
                break
    return smallest


def _simpler(calls: Calls) -> Iterator[Calls]:
    """Yield simpler sequences, the simplest of each kind first."""
    yield from _without(calls)
    yield from _plainer(calls)
    yield from _smaller(calls)


def _without(calls: Calls) -> Iterator[Calls]:
    """Yield sequences without some calls in a row."""
    length = len(calls) - 1
    while length > 0:
        for start in range(0, len(calls) - length + 1, length):
            yield calls[:start] + calls[start + length :]
        length //= 2


def _plainer(calls: Calls) -> Iterator[Calls]:
    """Yield sequences in which all calls, or one, have the usual value of a field."""
    unusual = dict.fromkeys(name for call in calls for name in call.model_dump(exclude_defaults=True))
    for name in unusual:
        if name in ("batch", "tokens"):
            continue
        usual = {name: Call.model_fields[name].default}
        yield tuple(call.model_copy(update=usual) for call in calls)
        for place, call in enumerate(calls):
            yield (*calls[:place], call.model_copy(update=usual), *calls[place + 1 :])


def _smaller(calls: Calls) -> Iterator[Calls]:
    """Yield sequences in which all calls of a batch size, which may share a cache, or of a size have a smaller one."""
    for batch in {call.batch: None for call in calls}:
        for less in _less(batch):
            yield tuple(call.model_copy(update={"batch": less}) if call.batch == batch else call for call in calls)
    for batch, tokens in {(call.batch, call.tokens): None for call in calls}:
        sizes = product((*_less(batch), batch), (*_less(tokens), tokens))
        for less, fewer in sorted(sizes, key=lambda each: each[0] * each[1]):
            yield tuple(
                call.model_copy(update={"batch": less, "tokens": fewer})
                if (call.batch, call.tokens) == (batch, tokens)
                else call
                for call in calls
            )


def _less(number: int) -> list[int]:
    """Return smaller numbers: the first four, and some between."""
    near = {number // 2, number - number // 4, number - number // 16, number - 1}
    return sorted(each for each in {1, 2, 3, 4} | near if 0 < each < number)
