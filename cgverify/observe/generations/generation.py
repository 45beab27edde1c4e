"""What differs between generations of Hugging Face's CodeGen module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cgverify.observe.taps import RecordTap
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.forward import Context
from cgverify.oracle.shortcuts import Shortcuts


@dataclass(frozen=True)
class Generation:
    definitions: Mapping[str, str]
    """What each stage that differs between generations computes, as a formula for people. Runs record it."""
    misfits: Callable[[], list[str]]
    """Return what this generation needs and the installed classes lack, in words; empty if they fit."""
    attentions: tuple[str, ...]
    """The implementations of attention that it has, of those in `cgverify.plan.axes.ATTENTIONS`."""
    kinds_with_pattern: tuple[str, ...]
    """Kinds of component that return the attention pattern after their output."""
    sin_cos_table: Callable[[Any], torch.Tensor]
    """Return a one-block model's table `[positions, rotary_dim]`, sines before cosines, as it is stored."""
    shared_modules: Callable[[Any], tuple[nn.Module, ...]]
    """Return the modules of a model or bridge that attention depends on and that are not inside it."""
    derived_inputs: tuple[str, ...]
    """Arguments of attention and block that the model, and `arguments`, compute from their other inputs."""
    dropout_rates: Callable[[nn.Module], list[tuple[Any, str]]]
    """Return the attributes of a component that are rates of dropout, each with its owner."""
    attention_dropout_rates: Callable[[nn.Module], list[tuple[Any, str]]]
    """Return those of them that are the rate of the pattern's dropout."""
    arguments: Callable[[nn.Module, dict[str, Any], Any], dict[str, Any]]
    """Return the arguments to call a component of either side with, the first one first.

    Arguments: the model or bridge that the component belongs to, the component's inputs by name in the order of its
    own arguments, and a `DynamicCache` or None.
    """
    attention_taps: Callable[[Any, RecordTap], contextlib.AbstractContextManager[None]]
    """Record what a `CodeGenAttention` computes, under the names and in the shapes of the bridge's hooks."""
    cast_rotated: Callable[[Expected, torch.dtype], Expected]
    """Return rotated queries or keys in the dtype that attention shows, from those in promoted dtype and their own."""
    cached_dtype: Callable[[torch.dtype, torch.dtype], torch.dtype]
    """Return the dtype of a cache, from the dtypes of the hidden states and of v."""
    scores: Callable[[Expected, Expected, torch.Tensor | None, Shortcuts], Expected]
    """Masked and scaled scores. Arguments as for `cgverify.oracle.scores.scores`."""
    autocast_scores: Callable[[Expected, Expected, torch.Tensor | None, torch.dtype, Shortcuts], Expected]
    """Scores under autocast. Arguments as for `cgverify.oracle.scores.autocast_scores`."""
    sampled_scores: Callable[[torch.Tensor, torch.Tensor, Context], torch.Tensor]
    """Scores of rotated heads for gradients. See `cgverify.oracle.forward.Context.scores`."""
