"""`shapes`: batches, sequences and caches of many sizes, on the inputs of `stress`.

Code that goes by blocks is wrong in its last one, code with a window or with the k best keys is right up to that many,
and code that finds a dimension by its size is wrong where two sizes are equal. With H heads of size D:

| kind | batch × tokens, then tokens on the cache of the ones before |
|---|---|
| attention | 1×1, 5×5, 1×259 then 1 then 31, 2×H, H×1, 2×(H − 1) then 1 (H keys), 1×D |
| block | 1×1, 5×5, 1×131, 2×(H − 1) then 1 |
| unembedding | 1×1, 5×5, 1×67 |
| others | 1×1, 5×5, 1×259 |

259 tokens are three more than a multiple of each power of two up to 256, so every block of 16 to 256 has a shorter last
one, and there are more keys than any window or choice of the best up to 256. So are 131 up to 128. A model with fewer
positions gets as many as it has. `--batch-size` and `--seq-len` do not apply. A tap that has the same bits as Hugging
Face's is not computed in float64 as well: the other cases do that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import CodeGenConfig

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.inputs import (
    CaseInputs,
    Inputs,
    InputSpec,
    RandomInputs,
    Step,
    draw,
    leave_unchanged,
    slice_tokens,
)

LONGEST = 259
"""Three more than the greatest power of two that is crossed."""

Size = tuple[int, tuple[int, ...]]
"""A batch, and the tokens of the forwards that follow each other on one cache."""

ANY: tuple[Size, ...] = ((1, (1,)), (5, (5,)), (1, (LONGEST,)))


def sizes(kind: str, config: CodeGenConfig) -> tuple[Size, ...]:
    """Return the sizes for a kind of component, each once and no longer than the model has positions."""
    heads, head_size = config.n_head, config.n_embd // config.n_head
    of_kind: dict[str, tuple[Size, ...]] = {
        "attn": (
            *((1, (1,)), (5, (5,)), (1, (LONGEST, 1, 31))),
            *((2, (heads,)), (heads, (1,)), (2, (heads - 1, 1)), (1, (head_size,))),
        ),
        "block": (*ANY[:2], (1, (131,)), (2, (heads - 1, 1))),
        "unembed": (*ANY[:2], (1, (67,))),
    }
    fitting = [(batch, _fitting(tokens, config.n_positions)) for batch, tokens in of_kind.get(kind, ANY)]
    return tuple(dict.fromkeys(fitting))


def _fitting(tokens: tuple[int, ...], positions: int) -> tuple[int, ...]:
    """Cut forwards to as many tokens as there are positions."""
    kept: list[int] = []
    for each in tokens:
        kept.append(min(each, positions - sum(kept)))
    return tuple(each for each in kept if each > 0)


@dataclass(frozen=True)
class _Shapes(Case):
    """Draws inputs for each size, where other cases draw once."""

    def build_inputs(
        self, component: Component, spec: InputSpec, config: CodeGenConfig, random_inputs: RandomInputs
    ) -> CaseInputs:
        steps: list[Step] = []
        for batch, tokens in sizes(component.kind, config):
            sized = replace(spec, batch_size=batch, seq_len=sum(tokens))
            # The stress of the embedding repeats one token, which hides an exchange of two positions.
            transform = leave_unchanged if component.kind == "embed" else component.stress(config)
            steps += _steps(batch, tokens, draw(random_inputs, sized, transform))
        return CaseInputs(tuple(steps))


def _steps(batch: int, tokens: tuple[int, ...], inputs: Inputs) -> list[Step]:
    """Return the forwards of one size, named `2x7` and `2x1 on 7`."""
    if len(tokens) == 1:
        return [Step(f"{batch}x{tokens[0]}", inputs)]
    steps, start = [], 0
    for each in tokens:
        name = f"{batch}x{each}" + (f" on {start}" if start else f" of {sum(tokens)}")
        steps.append(Step(name, slice_tokens(inputs, slice(start, start + each)), cache=f"{batch}x{sum(tokens)}"))
        start += each
    return steps


CASE = _Shapes(
    stages=lambda component, step: component.stages(step.cache is not None),
    accepts_equal_bits=True,
)
