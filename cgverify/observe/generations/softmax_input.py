"""Show the input of a softmax that Hugging Face computes inside a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cgverify.observe.fault import calls_a_side


class SoftmaxInput(TorchDispatchMode):
    """Show the input of every softmax."""

    def __init__(self, see: Callable[[torch.Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.see = see

    @calls_a_side
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._softmax.default:
            self.see(args[0])
        return func(*args, **(kwargs or {}))
