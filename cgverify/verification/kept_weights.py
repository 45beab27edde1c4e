"""Compare every row of every weight that a candidate keeps with Hugging Face's, bit for bit and without a forward.

Weights are compared as the candidate's modules have them, and under the names by which people reach for them:

| component | modules | names |
|---|---|---|
| embed | `embed` | `W_E` `[vocabulary, d_model]` |
| norms | `ln1`, `ln_final` | `w`, `b` |
| attention | `q`, `k`, `v`, the sin/cos table | `W_Q`, `W_K`, `W_V` `[heads, d_model, head]` |
| | `o` | `W_O` `[heads, head, d_model]` |
| MLP | `in`, `out` | `W_in`, `W_out`, transposed; `b_in`, `b_out` |
| unembed | `unembed` | `W_U` `[d_model, vocabulary]`, `b_U` |

A candidate may lack any of them. A name must show the memory of the module's weight, as TransformerLens's own names do,
so that an edit through the name changes the next forward; that the forward reads the module is asked in `state`. Two
tables are also looked up row by row, since a forward may use a copy: the
embedding by every id, and the sin/cos table by every position, which needs the first layer's attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from cgverify.common.records import Finding, Verdict
from cgverify.observe.bits import same_bits, same_tensor
from cgverify.observe.components import COMPONENTS
from cgverify.observe.fault import calls_a_side
from cgverify.observe.generations import installed
from cgverify.observe.inputs import convert
from cgverify.observe.run import call_component
from cgverify.observe.stages import rotated_heads
from cgverify.observe.taps import Observation, hook_points, watch_hooks
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import assess

STAGE = "weights"

IDS_AT_ONCE = 4096
"""Rows of the embedding that are looked up in one forward."""

MODULES = {
    "embed": ("embed",),
    "block": ("ln1", "attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out"),
    "ln_final": ("ln_final",),
    "unembed": ("unembed",),
}
"""By kind: the modules of a bridge that have weights. Inside a block, paths are relative to it."""

Rows = Callable[[torch.Tensor], torch.Tensor]
"""Return a tensor as the rows of the weight that it shows."""


def _as_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT


def _from_heads(tensor: torch.Tensor) -> torch.Tensor:
    """`[heads, d_model, head]` as `[heads · head, d_model]`."""
    return tensor.mT.flatten(0, 1)


def _into_heads(tensor: torch.Tensor) -> torch.Tensor:
    """`[heads, head, d_model]` as `[d_model, heads · head]`."""
    return tensor.flatten(0, 1).mT


NAMES: dict[str, tuple[tuple[str, str, str, Rows], ...]] = {
    "embed": (("", "W_E", "embed", _as_is),),
    "block": (
        ("ln1", "w", "ln1", _as_is),
        ("ln1", "b", "ln1.bias", _as_is),
        *(("attn", f"W_{w.upper()}", f"attn.{w}", _from_heads) for w in "qkv"),
        ("attn", "W_O", "attn.o", _into_heads),
        *(("mlp", f"W_{w}", f"mlp.{w}", _transposed) for w in ("in", "out")),
        *(("mlp", f"b_{w}", f"mlp.{w}.bias", _as_is) for w in ("in", "out")),
    ),
    "ln_final": (("", "w", "ln_final", _as_is), ("", "b", "ln_final.bias", _as_is)),
    "unembed": (("", "W_U", "unembed", _transposed), ("", "b_U", "unembed.bias", _as_is)),
}
"""By kind: the component inside it, a name there, the weight that it must be, and its rows."""


Kept = Iterator[tuple[str, str, torch.Tensor, int]]
"""A name in the component, the weight that it must be, the tensor that was found there, by the weight's rows, and the
address of its first element."""

Chunks = Iterable[tuple[int, torch.Tensor]]
"""Consecutive rows of a weight, with the number of the first."""


def findings_of_weights(kind: str, layer: int | None, bridge: Any, parameters: Parameters) -> tuple[Finding, ...]:
    """Return a finding for each weight of a component that the candidate keeps, under each name; one at least.

    Args:
        bridge: a one-block bridge.
        parameters: Hugging Face's weights.
    """
    node = bridge.get_submodule(COMPONENTS[kind].bridge_path)
    found = list(_of_modules(kind, node))
    kept = {weight: address for _, weight, _, address in found}
    found += _by_name(kind, node)
    if kind == "block":
        found += _tables(bridge, node, parameters.tensor("attn.table"))
    findings: list[Finding] = []
    for place, (name, weight, tensor, address) in enumerate(found):
        known = next(
            (i for i, (_, other, of, _) in enumerate(found[:place]) if other == weight and of.is_set_to(tensor)), None
        )
        if known is not None and not findings[known].message:
            findings.append(findings[known].model_copy(update={"tap": name}))
        else:
            findings.append(_compared(name, [(0, tensor.cpu())], _expected(weight, parameters)))
        if not findings[-1].message and weight in kept and address != kept[weight]:
            findings[-1] = _finding(name, f"{name} is a copy of the weight: an edit of it has no effect")
    if kind == "embed":
        table = parameters.tensor("embed")
        findings.append(_compared("returned", _looked_up(bridge, node, len(table), _device(node, parameters)), table))
    if kind == "block" and layer == 0:
        findings += _rotated(bridge, node, parameters)
    if not findings:
        message = "the candidate keeps its weights where they are not known, so that none was compared"
        findings.append(Finding(step="", tap="", stage=STAGE, verdict=Verdict.UNSUPPORTED, message=message))
    return tuple(findings)


def _expected(weight: str, parameters: Parameters) -> torch.Tensor:
    if weight.endswith(".bias"):
        return parameters.required_bias(weight.removesuffix(".bias"))
    return parameters.tensor(weight)


@calls_a_side
def _of_modules(kind: str, node: nn.Module) -> Kept:
    for weight in MODULES[kind]:
        path = weight if kind == "block" else ""
        try:
            module: Any = node.get_submodule(path)
        except AttributeError:
            continue
        module = getattr(module, "original_component", module)
        for name, suffix in (("weight", ""), ("bias", ".bias")):
            tensor = getattr(module, "_parameters", {}).get(name)
            if tensor is not None:
                yield _joined(path, name), weight + suffix, tensor.detach(), tensor.data_ptr()


@calls_a_side
def _by_name(kind: str, node: nn.Module) -> Kept:
    for path, name, weight, rows in NAMES[kind]:
        try:
            tensor = getattr(node.get_submodule(path), name, None)
        except (AttributeError, AssertionError):  # TransformerLens asserts that an embedding has a `weight`
            continue
        if isinstance(tensor, torch.Tensor):
            yield _joined(path, name), weight, rows(tensor.detach()), tensor.data_ptr()


def _tables(bridge: Any, node: nn.Module, table: torch.Tensor) -> Kept:
    """Yield the buffers that attention of a block depends on and that are as large as the sin/cos table."""
    for owner in (node, *installed().shared_modules(bridge)):
        for name, buffer in owner.named_buffers():
            if buffer.shape == table.shape:
                table_name = f"the buffer {name.removesuffix('._original_component')}"
                yield table_name, "attn.table", buffer.detach(), buffer.data_ptr()


def _looked_up(bridge: Any, node: nn.Module, rows: int, device: torch.device) -> Chunks:
    """Look up every row of the embedding."""
    for start in range(0, rows, IDS_AT_ONCE):
        ids = torch.arange(start, min(start + IDS_AT_ONCE, rows), device=device).unsqueeze(0)
        yield start, call_component(bridge, node, "embed", {"input_ids": ids})[0].detach().cpu()


def _rotated(bridge: Any, node: nn.Module, parameters: Parameters) -> Iterator[Finding]:
    """Rotate q and k of one token at every position, and compare them with the oracle's."""
    table, width = parameters.tensor("attn.table"), parameters.tensor("attn.o").shape[0]
    positions = torch.arange(len(table)).unsqueeze(1)
    hidden = torch.randn(len(table), 1, width, generator=torch.Generator().manual_seed(0))
    given = {"hidden_states": hidden, "position_ids": positions, "attention_mask": torch.zeros(len(table), 1, 1, 1)}
    inputs = convert(given, parameters.tensor("attn.o").dtype, _device(node, parameters))
    attention, seen = node.get_submodule("attn"), Observation()
    points = {name: point for name, point in hook_points(attention) if name in _ROTATION}
    with watch_hooks(points, seen, {}):
        call_component(bridge, attention, "attn", inputs)
    for before, after in (("q.hook_out", "hook_rot_q"), ("k.hook_out", "hook_rot_k")):
        if not {before, after} <= seen.taps.keys():
            continue
        expected, tap = rotated_heads(seen.taps[before], table, positions), seen.taps[after]
        if tap.shape != expected.value.shape:
            yield _finding(f"attn.{after}", f"attn.{after} has another shape with one token")
            continue
        worst, _ = assess(tap, expected)
        message = ""
        if worst.value > 1:
            position = worst.index // expected.value[0].numel()
            message = f"attn.{after} is rotated by another angle than Hugging Face's at position {position}"
        yield _finding(f"attn.{after}", message, r=worst.value, shape=tuple(tap.shape))


_ROTATION = ("q.hook_out", "k.hook_out", "hook_rot_q", "hook_rot_k")


def _device(node: nn.Module, parameters: Parameters) -> torch.device:
    return next((parameter.device for parameter in node.parameters()), torch.device(parameters.device))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _compared(name: str, chunks: Chunks, expected: torch.Tensor) -> Finding:
    """Return the finding of a weight, whose message names the first row that is wrong."""
    wrong: list[int] = []
    rows = 0
    for start, chunk in chunks:
        right = expected[start : start + len(chunk)]
        if chunk.shape[1:] != expected.shape[1:] or len(chunk) != len(right) or chunk.dtype != expected.dtype:
            form = f"{list(chunk.shape)} in {chunk.dtype}".replace("torch.", "")
            return _finding(name, f"{name} is {form} where Hugging Face has {list(expected.shape)} in {expected.dtype}")
        if not same_tensor(chunk, right):
            unequal = ~same_bits(chunk, right).reshape(len(chunk), -1).all(1)
            wrong += (unequal.nonzero().flatten() + start).tolist()
        rows += len(chunk)
    if rows != len(expected):
        return _finding(name, f"{name} has {rows} rows where Hugging Face has {len(expected)}")
    if not wrong:
        return _finding(name, "", shape=tuple(expected.shape))
    more = f" and {len(wrong) - 1} more of {len(expected)}" if len(wrong) > 1 else f" of {len(expected)}"
    return _finding(name, f"{name} is not Hugging Face's in row {wrong[0]}{more}", shape=tuple(expected.shape))


def _finding(tap: str, message: str, r: float | None = None, **figures: Any) -> Finding:
    right = Verdict.BITWISE if r is None else Verdict.BOUNDED
    return Finding(
        step="", tap=tap, stage=STAGE, verdict=Verdict.DIVERGED if message else right, message=message, r=r, **figures
    )
