"""A config or a set of tensor names is CodeGen's, or one sentence says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import CodeGenConfig

from cgverify.bridge.codegen_format import NotCodeGenError, config_from, parameter_names, read_config, require_tensors
from cgverify.checkpoint.resolve import resolve
from cgverify.common.errors import CheckpointMissingError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pickled code": ({"auto_map": {"AutoModel": "x.X"}}, "its own code"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized weights"),
    "another file of weights": ({"transformers_weights": "x.safetensors"}, "weights under a name of its own"),
    "another config": ({"configuration_files": ["config.4.0.0.json"]}, "another config.json"),
    "another config that is none": ({"configuration_files": None}, "another config.json"),
    "a size per layer": ({"per_layer_config": {"0": {"n_inner": 8}}}, "settings of its own"),
    "a method": ({"to_dict": 3}, "not a setting"),
    "negative rotary_dim": ({"rotary_dim": -2}, "rotary_dim -2"),
    "negative n_inner": ({"n_inner": -1}, "n_inner -1"),
    "no inner dimension": ({"n_inner": 0}, "n_inner 0"),
    "size as text": ({"n_embd": "64"}, "not a CodeGen config"),
    "size as fraction": ({"n_head": 4.5}, "not a CodeGen config"),
    "epsilon that is not a number": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon nan"),
    "negative epsilon": ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon -1.0"),
    "dropout above one": ({"resid_pdrop": 2.0}, "at most 1"),
    "unknown dtype": ({"dtype": "nonsense"}, "nonsense"),
    "dtype that is a function": ({"dtype": "load"}, "dtype"),
    "dtype as number": ({"dtype": 5}, "dtype 5"),
    "sizes beyond an address": ({"n_embd": 1 << 40}, "cannot build"),
    "attention as a number": ({"attn_implementation": True}, "cannot build"),
    "attention that does not exist": ({"_attn_implementation": "x"}, "cannot build"),
    "attention on the hub": ({"_attn_implementation": "someone/kernel"}, "a kernel on the hub"),
    "size under another name": ({"max_position_embeddings": [None]}, "n_positions"),
    "size that is a truth value": ({"num_hidden_layers": True}, "n_layer True"),
    "name with a line end": ({"model_type": "a\nb"}, "a a b checkpoint"),
    "theta that is not a number": ({"rope_theta": {}}, "rope_theta {}"),
    "another map of attributes": ({"attribute_map": {}}, "CodeGen"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_config_that_is_not_codegen_is_refused(config: CodeGenConfig, kind: str) -> None:
    changes, message = REFUSED[kind]
    with pytest.raises(NotCodeGenError, match=message) as refused:
        config_from({**config.to_dict(), **changes}, "FOLDER")
    assert str(refused.value).startswith("FOLDER")
    assert "\n" not in str(refused.value)


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"return_dict": False},
    {"use_cache": False},
    {"attn_implementation": "eager"},
    {"torchscript": True},
    {"pad_token_id": -1, "bos_token_id": None, "eos_token_id": [1, 2]},
    {"quantization_config": None, "auto_map": None},
]


@pytest.mark.parametrize("changes", ACCEPTED)
def test_unusual_config_of_codegen_is_accepted(config: CodeGenConfig, changes: dict[str, Any]) -> None:
    assert config_from({**config.to_dict(), **changes}, "FOLDER").n_embd == 64


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[1]", '"x"', "\udcff"])
def test_file_that_is_not_a_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(NotCodeGenError, match=r"not JSON|not a JSON object"):
        read_config(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_config_without_permission_is_refused(folder: Path) -> None:
    (folder / "config.json").chmod(0)
    with pytest.raises(NotCodeGenError, match="cannot be read"):
        read_config(folder)


def test_folder_with_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(NotCodeGenError, match="merge it"):
        read_config(folder)


def test_control_characters_of_a_folder_are_written_out(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "\x1b[31m"}))
    with pytest.raises(CheckpointMissingError, match=r"has a \\x1b\[31m checkpoint"):
        resolve(str(folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_prefix_of_a_wrapper_is_named(config: CodeGenConfig, prefix: str) -> None:
    names = [prefix + name for name in parameter_names(config)]
    with pytest.raises(NotCodeGenError, match=f"without the prefix '{prefix}'"):
        require_tensors(names, config, "FOLDER")


def test_absurd_number_of_layers_is_refused_at_once(config: CodeGenConfig) -> None:
    names = list(parameter_names(config))
    config.n_layer = 10**12
    with pytest.raises(NotCodeGenError, match=r"no tensor transformer\.h\.2\."):
        require_tensors(names, config, "FOLDER")
