"""`python -m cgverify.bench.fresh REQUEST`: one figure of peak memory, measured in this process and printed as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from cgverify.bench import calls
from cgverify.bench.memory import MemoryRequest, peak
from cgverify.bench.records import Point
from cgverify.bench.subjects import WHOLE, Workshop
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.window import ModelVariant
from cgverify.common.environment import pin_numerics
from cgverify.common.printable import said
from cgverify.common.streams import stdout_is_ours
from cgverify.observe.candidate import find_candidate
from cgverify.observe.components import COMPONENTS


def measure(request: MemoryRequest) -> int:
    """The peak of a forward, or of wrapping where the scenario is `boot-memory`."""
    pin_numerics(request.threads)
    point = Point.model_validate(request.point)
    source = resolve(request.model, request.weights)
    setting = ModelVariant(getattr(torch, point.dtype), torch.device(point.device), request.rotary_dim)
    model: Any = Workshop(source, setting, point.component).model()
    candidate = None if request.candidate is None else find_candidate(request.candidate)
    if point.scenario == "boot-memory":
        assert candidate is not None
        small = Workshop(source, setting, "block").model()  # what is imported and set up once is no part of the figure
        candidate.boot(small)
        return peak(lambda: candidate.boot(model), setting.device)
    root = model if candidate is None else candidate.boot(model)
    component = COMPONENTS.get(point.component)
    path = "" if component is None else component.reference_path if candidate is None else component.bridge_path
    module = root if point.component == WHOLE else root.get_submodule(path)

    def forward(at: Point) -> Callable[[], Any]:
        return calls.forward_of(module, at, calls.inputs_of(at, source.config), source.config)

    warm = forward(point.model_copy(update={"batch_size": 1, "seq_len": 2}))
    run = forward(point)
    with calls.mode(point):
        warm()
        return peak(run, setting.device)


def main() -> None:
    request = MemoryRequest(**json.loads(sys.argv[1]))
    try:
        with stdout_is_ours():
            answer: dict[str, Any] = {"bytes": measure(request)}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        answer = {"message": " ".join(f"{type(error).__name__}: {said(error)}".split())}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
