"""Folders with changes at random: the answer is a verdict or one sentence, and what is verified is what loads.

A folder that cgverify verifies is one that `from_pretrained` loads, with equal weights and none of its own. A folder
that `from_pretrained` refuses is refused. What cgverify refuses need not be refused by `from_pretrained`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sides import small_config
from torch import Tensor
from transformers import CodeGenForCausalLM

import cgverify
from cgverify.checkpoint.resolve import resolve
from cgverify.common.errors import CgverifyError

Content = tuple[dict[str, Any], dict[str, Tensor]]
"""What config.json says, and the tensors of model.safetensors."""


@cache
def original() -> Content:
    """Return the smallest model: one block with four heads of size 4."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_head": 4, "rotary_dim": 4, "n_layer": 1, "vocab_size": 11}
    model = CodeGenForCausalLM(small_config(**sizes, n_positions=16, n_ctx=16))
    return model.config.to_dict(), dict(model.state_dict())


# --- changes ----------------------------------------------------------------------------------------------------------

NUMBERS = [0, 1, -1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 64, 1 << 16, 1 << 31, 1 << 40, 1 << 63, 1 << 70, -2, -(1 << 40)]
FRACTIONS = [0.0, 0.5, 1.0, 2.0, -1.0, 1e-5, 1e30, 1e300, float("nan"), float("inf")]
TEXTS = ["", "4", "x", "codegen", "gelu_new", "relu", "float16", "float8_e4m3fn", "eager", "sdpa", "\x1b[31m", "é\n"]
simple = st.one_of(st.none(), st.booleans(), st.sampled_from([*NUMBERS, *FRACTIONS, *TEXTS]))
values = simple | st.lists(simple, max_size=2) | st.dictionaries(st.sampled_from(["0", "x"]), simple, max_size=1)

KEYS = [
    *("vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner", "use_cache"),
    *("activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "model_type", "architectures", "dtype"),
    *("torch_dtype", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "is_decoder"),
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings", "attribute_map"),
    *("_attn_implementation", "attn_implementation", "quantization_config", "auto_map", "per_layer_config"),
    *("fusion_config", "transformers_weights", "configuration_files", "rope_scaling", "rope_parameters", "rope_theta"),
    *("layer_types", "sliding_window", "id2label", "label2id", "num_labels", "problem_type", "name_or_path"),
    *("transformers_version", "chunk_size_feed_forward", "is_encoder_decoder", "to_dict", "sub_configs", "unknown"),
    *("tokenizer_class", "generation_config", "max_length", "do_sample", "base_model_tp_plan", "_commit_hash"),
]


@st.composite
def config_changes(draw: st.DrawFn) -> Content:
    config, weights = original()
    config = dict(config)
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)):
        if draw(st.integers(0, 5)) == 0:
            config.pop(key, None)
        else:
            config[key] = draw(values)
    return config, weights


DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16),
]
SHAPES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.mT.contiguous() if x.dim() > 1 else x,
    lambda x: x.flatten(),
    lambda x: x.unsqueeze(0),
    lambda x: torch.atleast_1d(x)[:-1],
    lambda x: torch.atleast_1d(x)[:0],
    lambda x: torch.atleast_1d(x).repeat(2, *[1] * (x.dim() - 1)),
    lambda x: x.flatten()[0] if x.numel() else x,
]
NUMBERS_IN: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.full_like(x, torch.nan),
    lambda x: torch.full_like(x, torch.inf),
    lambda x: torch.full_like(x, 1e38),
    torch.zeros_like,
    lambda x: x * 1e-30,
]
NAMES: list[Callable[[str], str]] = [
    lambda name: f"module.{name}",
    lambda name: f"_orig_mod.{name}",
    lambda name: name.removeprefix("transformer."),
    lambda name: name.replace("h.0", "h.1"),
    lambda name: name.replace("h.0", "h.00"),
    lambda name: name.replace("weight", "gamma").replace("bias", "beta"),
    lambda name: name.replace("weight", "weight_g"),
    lambda name: f"{name}.lora_A.weight",
    lambda name: name.upper(),
    lambda _: "transformer.h.0.attn.causal_mask",
    lambda _: "transformer.h.0.attn.qkv_proj.bias",
    lambda _: "\x1b[31m\n",
]


@st.composite
def weights_changes(draw: st.DrawFn) -> Content:
    config, weights = original()
    config, weights = dict(config), dict(weights)
    if draw(st.booleans()):
        config["tie_word_embeddings"] = True
    for _ in range(draw(st.integers(1, 2))):
        if not weights:
            break
        name = draw(st.sampled_from(sorted(weights)))
        what = draw(st.sampled_from(["dtype", "all dtypes", "shape", "numbers", "name", "all names", "drop", "copy"]))
        names = sorted(weights) if what.startswith("all") else [name]
        if what.endswith(("dtype", "dtypes")):
            dtype = draw(st.sampled_from(DTYPES))
            weights |= {each: weights[each].to(dtype) for each in names}
        elif what == "shape":
            weights[name] = draw(st.sampled_from(SHAPES))(weights[name])
        elif what == "numbers":
            if weights[name].dtype in (torch.float64, torch.float32):
                weights[name] = draw(st.sampled_from(NUMBERS_IN))(weights[name])
        elif what.endswith(("name", "names")):
            rename = draw(st.sampled_from(NAMES))
            weights |= {rename(each): weights.pop(each) for each in names}
        elif what == "drop":
            del weights[name]
        else:
            weights[draw(st.sampled_from(NAMES))(name)] = weights[name]
    return config, weights


# --- the property -----------------------------------------------------------------------------------------------------


def require_answer(content: Content, weights_from: str = "auto") -> None:
    """Check that a folder is verified or refused.

    Args:
        weights_from: `auto`, or `random` for weights that are not those of the folder.
    """
    config, weights = content
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "config.json").write_text(json.dumps(config))
        save_file({name: x.contiguous().clone() for name, x in weights.items()}, folder / "model.safetensors")
        try:
            result = cgverify.verify(
                folder,
                weights=weights_from,
                components=["embed", "block", "ln_final", "unembed"],
                cases=["stress"],
                batch_size=1,
                seq_len=2,
            )
        except CgverifyError as error:
            require_sentence(str(error))
            return
        verdicts = set(result.findings["verdict"])
        assert not verdicts & {"diverged", "missing", "suspect"}, result.findings[["tap", "verdict", "message"]]
        refused = verdicts & {"error", "unsupported"}
        if refused:
            assert not result.ok
            for message in result.findings["message"][result.findings["verdict"].isin(refused)]:
                require_sentence(message)
        if "error" not in verdicts and weights_from == "auto":
            require_loaded(folder, runs="unsupported" not in verdicts)


def require_sentence(message: str) -> None:
    assert message
    assert "\n" not in message
    assert message.isprintable()
    assert "fault of its own" not in message


def require_loaded(folder: Path, runs: bool) -> None:
    """Check that `from_pretrained` loads a folder, and that what cgverify reads are the weights that it loads."""
    model, info = CodeGenForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] | info["mismatched_keys"]
    source = resolve(str(folder))
    for name, tensor in model.state_dict().items():
        assert torch.equal(source.read(name, tensor.shape).to(torch.float32), tensor), name
    model.config.return_dict = True  # 5.24 cannot return a tuple, and the form of the output is not what is compared
    tokens = torch.zeros(1, min(2, model.config.n_positions), dtype=torch.long)
    if runs:
        model(tokens)
    else:
        with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
            model(tokens)


WITHOUT_SHRINKING = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
quick = settings(deadline=None, max_examples=12, derandomize=True, database=None, phases=WITHOUT_SHRINKING)
thorough = settings(quick, max_examples=700, derandomize=False, suppress_health_check=list(HealthCheck))


@quick
@given(content=config_changes())
def test_changed_config_is_verified_or_refused(content: Content) -> None:
    require_answer(content)


@quick
@given(content=config_changes())
def test_changed_config_with_random_weights_is_answered(content: Content) -> None:
    require_answer(content, "random")


@pytest.mark.parametrize(
    "sizes", [{"n_layer": 10**9}, {"vocab_size": 10**12}, {"n_positions": 10**12}, {"n_inner": 10**15}]
)
def test_absurd_size_is_one_sentence(sizes: dict[str, int]) -> None:
    config, weights = original()
    require_answer((config | sizes, weights), "random")


@quick
@given(content=weights_changes())
def test_changed_weights_are_verified_or_refused(content: Content) -> None:
    require_answer(content)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("changes", "weights_from"), [(config_changes, "auto"), (config_changes, "random"), (weights_changes, "auto")]
)
def test_thousands_of_changed_folders_are_answered(
    changes: Callable[[], st.SearchStrategy[Content]], weights_from: str
) -> None:
    @thorough
    @given(content=changes())
    def answer(content: Content) -> None:
        require_answer(content, weights_from)

    answer()
