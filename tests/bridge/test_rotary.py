"""The rotation, bit for bit against Hugging Face's functions, and by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.codegen.modeling_codegen import apply_rotary_pos_emb, create_sinusoidal_positions

from cgverify.bridge.rotary import rotate, rotate_every_two, sin_cos


def test_a_quarter_turn_by_hand() -> None:
    sin, cos = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
    assert rotate(torch.tensor([[[[1.0, 2.0]]]]), sin, cos).flatten().tolist() == [-2.0, 1.0]


def test_rotate_every_two_by_hand() -> None:
    assert rotate_every_two(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-2.0, 1.0, -4.0, 3.0]


@given(
    rotary_dim=st.sampled_from([2, 6, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    table_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    batch=st.integers(1, 3),
    shared=st.booleans(),
)
def test_the_same_bits_as_hugging_face(
    rotary_dim: int, dtype: torch.dtype, table_dtype: torch.dtype, batch: int, shared: bool
) -> None:
    table = create_sinusoidal_positions(50, rotary_dim).to(table_dtype)
    positions = torch.randint(50, (1 if shared else batch, 7))
    x = torch.randn(batch, 7, 4, 16).to(dtype)
    half = rotary_dim // 2
    theirs = apply_rotary_pos_emb(x[..., :rotary_dim], table[positions][..., :half], table[positions][..., half:])
    ours = rotate(x, *sin_cos(table, positions))
    assert torch.equal(ours[..., :rotary_dim], theirs)
    assert torch.equal(ours[..., rotary_dim:], x[..., rotary_dim:].to(ours.dtype))


@given(offset=st.integers(0, 40))
def test_an_offset_of_all_positions_leaves_the_scores(offset: int) -> None:
    """q(p)·k(s) depends on p − s alone: RoPE's defining property, to rounding."""
    table = create_sinusoidal_positions(64, 16)
    query, key = torch.randn(2, 1, 8, 2, 16).double()
    here = torch.arange(8)[None]

    def scores(positions: torch.Tensor) -> torch.Tensor:
        sin, cos = sin_cos(table.double(), positions)
        return rotate(query, sin, cos).transpose(1, 2) @ rotate(key, sin, cos).permute(0, 2, 3, 1)

    torch.testing.assert_close(scores(here), scores(here + offset), atol=1e-4, rtol=0)
