"""One wrong row, element or layer among many: what samples leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Hidden, Implementation, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.rotation import by_table
from cgverify.selftest.seeded.seeding import attention, changed, edited, in_view, rebuilt, reweighted

LAST = 4
"""The last layer of codegen-nano."""


def _exchanged(first: int, second: int) -> Callable[[Tensor], Tensor]:
    def edit(weight: Tensor) -> None:
        weight[[first, second]] = weight[[second, first]]

    return edited(edit)


def _with_table(edit: Callable[[Tensor], object]) -> Implementation:
    """Rotate by an edited copy of the sin/cos table, also if its rows were looked up before."""
    return attention(_rotate=by_table(lambda _, table: edited(edit)(table)))


def _repeat_row(table: Tensor) -> None:
    table[300] = table[299]


def _wrap(table: Tensor) -> None:
    table[400:] = table[: len(table) - 400].clone()


def _only_in(layer: int, change: Callable[[Any], object]) -> Implementation:
    """Change the block of one layer of the model."""

    def seed(bridge: Any) -> None:
        for block in bridge.blocks:
            if in_view(block) and block.attn.original_component.layer_idx == layer:
                change(block)

    return rebuilt(seed)


def _scale_output(block: Any) -> None:
    weight = block.attn.o.original_component.weight
    weight.data = weight.data * 1.01


def _forget_bias(block: Any) -> None:
    linear = block.mlp.get_submodule("out").original_component
    linear.bias = None


def _bias_of_one_token(bridge: Any) -> None:
    bias = bridge.unembed.original_component.bias
    bias.data = edited(lambda values: values[77].add_(0.5))(bias.data)


def _positions(*positions: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: given | {"position_ids": torch.tensor([positions])}


def _block(layer: int) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        attended = bridge.blocks[layer].attn.o(user.states()["hidden_states"])
        return attended, bridge.blocks[layer].mlp(user.states()["hidden_states"])

    return demonstrate


_TABLES = {
    "TableRow300Repeated": Hidden(
        "Position 300 has the sines and cosines of position 299.",
        _with_table(_repeat_row),
        ("rope",),
        user.attends(_positions(298, 299, 300), batch=1, tokens=3),
        cases=("shapes",),
    ),
    "TableWraps": Hidden(
        "Positions from 400 on begin with 0 again.",
        _with_table(_wrap),
        ("rope",),
        user.attends(_positions(10, 20, 450), batch=1, tokens=3),
        cases=("shapes",),
    ),
}
_ROWS = {
    "embedding_row_137_scaled": Hidden(
        "The row of token 137 is scaled by 1.01.",
        reweighted("embed", edited(lambda weight: weight[137].mul_(1.01))),
        ("embedding",),
        user.looks_up(136, 137),
        ("embed",),
    ),
    "embedding_element_missing": Hidden(
        "One element of the row of token 201 is 0.",
        reweighted("embed", edited(lambda weight: weight[201, 77].zero_())),
        ("embedding",),
        user.looks_up(201),
        ("embed",),
    ),
    "embedding_rows_exchanged": Hidden(
        "Tokens 61 and 62 have each other's rows.",
        reweighted("embed", _exchanged(61, 62)),
        ("embedding",),
        user.looks_up(61),
        ("embed",),
    ),
    "embedding_rows_of_added_tokens": Hidden(
        "Tokens 250 to 254, as if they had been added later, have the mean of all rows.",
        reweighted("embed", edited(lambda weight: weight[250:255].copy_(weight.mean(0)))),
        ("embedding",),
        user.looks_up(252),
        ("embed",),
    ),
    "unembedding_rows_exchanged": Hidden(
        "Tokens 61 and 62 have each other's logits, bias aside.",
        reweighted("unembed", _exchanged(61, 62)),
        ("unembed",),
        user.computes("unembed", user.states),
        ("unembed",),
    ),
    "unembedding_bias_of_one_token": Hidden(
        "The bias of token 77 is too large by 0.5.",
        changed(_bias_of_one_token),
        ("unembed",),
        user.computes("unembed", user.states),
        ("unembed",),
    ),
}
_LAYERS = {
    "output_scaled_in_layer_3": Hidden(
        "In layer 3 alone, the output projection is scaled by 1.01.",
        _only_in(3, _scale_output),
        ("output",),
        _block(3),
        ("attn", "attn.o", "block"),
        cases=("default",),
        layer=3,
    ),
    "bias_missing_in_last_layer": Hidden(
        "In the last layer alone, `fc_out` has no bias.",
        _only_in(LAST, _forget_bias),
        ("mlp_out",),
        _block(LAST),
        ("mlp", "mlp.out", "block"),
        cases=("default",),
        layer=LAST,
    ),
}

FAULTS = hidden_faults(__name__, _TABLES | _ROWS | _LAYERS, "weights")
__getattr__ = by_name(FAULTS)
