"""What is tried to make a failing sequence of calls smaller: without calls, with plainer ones, with smaller sizes.

A sequence is the smallest if none of `simpler` fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from cgverify.verification.fuzz.calls import Call

Calls = tuple[Call, ...]


def simpler(calls: Calls) -> Iterator[Calls]:
    """Yield simpler sequences, those that are simpler by more first."""
    yield from _without(calls)
    yield from _plainer(calls)
    yield from _smaller(calls)


def _without(calls: Calls) -> Iterator[Calls]:
    """Yield sequences without some calls in a row, the first ones first."""
    length = len(calls) - 1
    while length > 0:
        for start in range(0, len(calls) - length + 1, length):
            yield calls[:start] + calls[start + length :]
        length //= 2


def _plainer(calls: Calls) -> Iterator[Calls]:
    """Yield sequences in which all calls, or one, have the usual value of one field."""
    unusual = dict.fromkeys(name for call in calls for name in call.model_dump(exclude_defaults=True))
    for name in unusual.keys() - {"batch", "tokens"}:
        usual = {name: Call.model_fields[name].default}
        yield tuple(call.model_copy(update=usual) for call in calls)
        for place, call in enumerate(calls):
            yield (*calls[:place], call.model_copy(update=usual), *calls[place + 1 :])


def _smaller(calls: Calls) -> Iterator[Calls]:
    """Yield sequences in which all calls of one size have a smaller one: a cache needs one batch size."""
    for batch in {call.batch for call in calls}:
        for less in _less(batch):
            yield tuple(call.model_copy(update={"batch": less}) if call.batch == batch else call for call in calls)
    for batch, tokens in {(call.batch, call.tokens) for call in calls}:
        fewer = sorted(product(_less(batch) + [batch], _less(tokens) + [tokens]), key=lambda size: size[0] * size[1])
        for size in fewer:
            update = dict(zip(("batch", "tokens"), size, strict=True))
            yield tuple(
                call.model_copy(update=update) if (call.batch, call.tokens) == (batch, tokens) else call
                for call in calls
            )


def _less(number: int) -> list[int]:
    """Return smaller numbers: the first four, and some between."""
    near = {number // 2, number - number // 4, number - number // 16, number - 1}
    return sorted({each for each in {1, 2, 3, 4} | near if 0 < each < number})
