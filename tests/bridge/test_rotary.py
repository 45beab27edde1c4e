"""The rotary embedding, computed by hand and compared with Hugging Face's bit for bit."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.codegen.modeling_codegen import apply_rotary_pos_emb, create_sinusoidal_positions

from cgverify.bridge.rotary import rotate, rotate_every_two, sin_cos


def test_rotation_by_90_degrees_by_hand() -> None:
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
def test_rotation_has_hugging_faces_bits(
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
