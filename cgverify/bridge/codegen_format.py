"""What a checkpoint must be to be read as CodeGen: its config.json, and the names of its tensors.

The bridge and the verifier ask this one guard, so that both refuse a folder with one sentence. It refuses what is not
CodeGen, what Hugging Face cannot build, and what `from_pretrained` would not load from these files alone.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.bridge.qkv_layout import PARTITIONS

TIED = {"lm_head.weight": "transformer.wte.weight", "transformer.wte.weight": "lm_head.weight"}
"""The tensor to read instead of each, if embedding and unembedding are tied and only one of them is stored."""

LEGACY = re.compile(r"(^|\.)attn\.(causal_mask|bias|masked_bias|embed_positions)$")
"""Buffers that older versions of transformers stored. They follow from the config, and are computed again."""

CHANGE_THE_MODEL = {
    "auto_map": "its own code, as CodeGen2 does, whose fused QKV weight has 8 partitions under CodeGen's name: its "
    "layout is not guessed",
    "configuration_files": "another config.json for some versions of transformers: remove that key",
    "transformers_weights": "weights under a name of its own: rename the file to model.safetensors and remove that key",
    "quantization_config": "quantized weights: save it dequantized first",
    "per_layer_config": "settings of its own for some layers, which no CodeGen has: remove that key",
    "fusion_config": "fused modules instead of CodeGen's: remove that key",
}
"""Keys of a config.json by which `from_pretrained` takes other code, files or modules, each with what it means."""

_LEAST = {"n_head": 1, "n_embd": 1, "n_layer": 1, "vocab_size": 1, "n_positions": 1, "n_inner": 1, "rotary_dim": 0}
_MOST_LAYERS = 10_000
"""A plan lists the layers one by one. The deepest model that is known has a hundredth of these."""

_LARGEST = sys.float_info.max
_MOST = {
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 1),
    **dict.fromkeys(("layer_norm_epsilon", "initializer_range"), _LARGEST),
}


class NotCodeGenError(ValueError):
    """A config, folder or set of tensors that is not read as CodeGen. The message is one sentence for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a folder's names and values may contain line ends


def read_config(folder: Path) -> CodeGenConfig:
    """Return the config of a folder, as Hugging Face reads it.

    Raises:
        NotCodeGenError: config.json is missing or damaged or is refused (see `config_from`), or there is an adapter,
            which `from_pretrained` would add to the weights.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotCodeGenError(f"{folder} has no config.json: it is not a Hugging Face checkpoint.")
    if (folder / "adapter_config.json").exists():
        raise NotCodeGenError(f"{folder} has an adapter (adapter_config.json): merge it into the weights first.")
    try:
        described: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotCodeGenError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise NotCodeGenError(f"{path} is not JSON: {_one_line(error)}") from error
    return config_from(described, str(folder))


def config_from(described: Any, where: str) -> CodeGenConfig:
    """Return the config that the content of a config.json describes.

    Args:
        described: the content, as `json.loads` returns it.
        where: the folder or model, for the message.

    Raises:
        NotCodeGenError: it is not CodeGen's, is not valid, or Hugging Face cannot build a model of it.
    """
    if not isinstance(described, dict):
        raise NotCodeGenError(f"{where} has a config.json that is not a JSON object: it is not a model's config.")
    if described.get("model_type") != "codegen":
        kind = described.get("model_type", "nameless")
        raise NotCodeGenError(f"{where} has a {str(kind)[:60]} checkpoint: cgverify is for CodeGen.")
    for key, meaning in CHANGE_THE_MODEL.items():
        if described.get(key) is not None or (key in described and key == "configuration_files"):
            raise NotCodeGenError(f"{where} has {meaning} ({key} in its config.json).")
    for key in described:
        if callable(getattr(CodeGenConfig, key, None)):
            raise NotCodeGenError(f"{where} has {key!r} in its config.json, which is not a setting: remove it.")
    try:
        config = CodeGenConfig(**{name: value for name, value in described.items() if name != "model_type"})
    except Exception as error:  # transformers checks types with exceptions of several kinds
        raise NotCodeGenError(f"{where}/config.json is not a CodeGen config: {_one_line(error)}") from error
    _require_sound(config, where)
    if "/" in str(config._attn_implementation):
        raise NotCodeGenError(f"{where} names a kernel on the hub for its attention, which is code: remove that key.")
    try:
        one_block = copy.deepcopy(config)
        one_block.n_layer = 1
        with torch.device("meta"):
            CodeGenForCausalLM(one_block)
    except Exception as error:  # code of Hugging Face, which may refuse in any way
        reason = _one_line(error)
        raise NotCodeGenError(f"{where} describes a model that Hugging Face cannot build: {reason}") from error
    return config


def _require_sound(config: CodeGenConfig, where: str) -> None:
    for name, least in _LEAST.items():
        size = getattr(config, name)
        if size is None and name == "n_inner":
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise NotCodeGenError(f"{where} has {name} {size} in its config.json: it must be a number from {least} on.")
    if config.n_layer > _MOST_LAYERS:
        raise NotCodeGenError(f"{where} has n_layer {config.n_layer} in its config.json: {_MOST_LAYERS} is the most.")
    for name, most in _MOST.items():
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 <= value <= most:
            upper = "finite" if most == _LARGEST else f"at most {most:g}"
            raise NotCodeGenError(f"{where} has {name} {value} in its config.json: it must be {upper} and not below 0.")
    theta = getattr(config, "rope_theta", 0.0)  # CodeGen has none, and TransformerLens reads it
    if not isinstance(theta, int | float):
        raise NotCodeGenError(f"{where} has rope_theta {theta} in its config.json, which is not a number: remove it.")
    if config.n_head % PARTITIONS or config.n_embd % config.n_head:
        raise NotCodeGenError(
            f"{where} has {config.n_head} heads and n_embd {config.n_embd}: the heads of a CodeGen model are a "
            f"multiple of {PARTITIONS} and divide n_embd."
        )
    if config.activation_function != "gelu_new":
        raise NotCodeGenError(
            f"{where} has the activation {config.activation_function}: cgverify knows only CodeGen's gelu_new."
        )
    if config.dtype is not None and not isinstance(config.dtype, torch.dtype):
        raise NotCodeGenError(
            f"{where} has the dtype {config.dtype!r:.60} in its config.json, which torch does not have."
        )


def skeleton(config: CodeGenConfig, n_layers: int) -> CodeGenForCausalLM:
    """Return a model with a number of layers on the meta device: shapes without memory.

    It has a copy of the config, runs with a cache and eager attention, and returns a `ModelOutput`.
    """
    config = copy.deepcopy(config)
    config.n_layer, config.use_cache, config.return_dict = n_layers, True, True
    config._attn_implementation = "eager"
    config.architectures = ["CodeGenForCausalLM"]
    with torch.device("meta"):
        return CodeGenForCausalLM(config)


def require_tensors(names: Collection[str], config: CodeGenConfig, where: str) -> None:
    """Check that the tensors of a checkpoint are exactly CodeGen's. Buffers of older versions are ignored.

    Args:
        names: the names of all stored tensors.
        where: the folder or model, for the message.

    Raises:
        NotCodeGenError: a tensor is missing, has a prefix, or is one that CodeGen does not have.
    """
    stored, known = set(names), set()
    tied = TIED if config.tie_word_embeddings else {}
    for name in parameter_names(config):
        if name not in stored and tied.get(name) not in stored:
            prefixed = next((each for each in sorted(stored) if each.endswith(f".{name}")), None)
            if prefixed is not None:
                prefix = prefixed.removesuffix(name)
                raise NotCodeGenError(
                    f"{where} has the tensor {prefixed} where CodeGen has {name}: save it without the prefix "
                    f"{prefix!r}, from the model inside the wrapper."
                )
            raise NotCodeGenError(f"{where} has no tensor {name}: it is incomplete, or not a CodeGenForCausalLM's.")
        known.add(name)
    surplus = sorted(name for name in stored - known if not LEGACY.search(name))
    if surplus:
        more = f" (and {len(surplus) - 1} more)" if len(surplus) > 1 else ""
        raise NotCodeGenError(
            f"{where} has the tensor {surplus[0]}{more}, which CodeGen does not have: it belongs to another "
            "architecture, or is an addition that must be merged or left out first."
        )


def parameter_names(config: CodeGenConfig) -> Iterator[str]:
    """Yield the names of all parameters of Hugging Face's model, from a model of one block on the meta device."""
    first = "transformer.h.0."
    for name in skeleton(config, 1).state_dict():
        if name.startswith(first):
            yield from (f"transformer.h.{layer}.{name.removeprefix(first)}" for layer in range(config.n_layer))
        else:
            yield name


def _one_line(error: Exception) -> str:
    """Return an exception as one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
