"""Every form in which a CodeGen checkpoint is stored gives the weights that `from_pretrained` loads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CodeGenConfig, CodeGenForCausalLM
from verifying import failed, verify

from cgverify.checkpoint import formats
from cgverify.checkpoint.lookup import describe_checkpoint
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import FolderWeights
from cgverify.checkpoint.window import ModelVariant, Window
from cgverify.common.errors import WeightsError
from cgverify.observe.candidate import find_candidate
from cgverify.plan.axes import Axes
from cgverify.plan.cells import cells
from cgverify.verification.checkpoint_verifier import CheckpointVerifier
from cgverify.verification.judge import Judge

NAME = "transformer.h.0.attn.out_proj.weight"
SHAPE = torch.Size([64, 64])
State = dict[str, torch.Tensor]
Write = Callable[[Path, State], None]


def one_bin(folder: Path, state: State) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def sharded(stem: str, suffix: str, save: Callable[[State, Path], None]) -> Write:
    def write(folder: Path, state: State) -> None:
        names = sorted(state)
        shards = {f"{stem}-0000{number}-of-00003.{suffix}": names[number - 1 :: 3] for number in (1, 2, 3)}
        for file, held in shards.items():
            save({name: state[name].contiguous().clone() for name in held}, folder / file)
        weight_map = {name: file for file, held in shards.items() for name in held}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


FORMS: dict[str, Write] = {
    "one .bin": one_bin,
    "sharded .bin": sharded("pytorch_model", "bin", torch.save),
    "sharded safetensors": sharded("model", "safetensors", save_file),
}


def store(folder: Path, state: State, write: Write) -> str:
    """Store a state dict in another form in a folder that has its config, and return the folder's name."""
    for path in folder.glob("model*"):
        path.unlink()
    write(folder, state)
    return str(folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_form_is_read_as_from_pretrained_reads_it(
    folder: Path, model: CodeGenForCausalLM, form: str, dtype: torch.dtype
) -> None:
    store(folder, model.to(dtype).state_dict(), FORMS[form])
    whole = CodeGenForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    source = resolve(str(folder))
    for name, expected in whole.items():
        stored = source.read(name, expected.shape)
        assert stored.dtype == dtype, name
        assert stored.data_ptr() % 64 == 0, name
        assert torch.equal(stored.to(torch.bfloat16), expected), name


def test_formats_of_one_checkpoint_give_the_same_findings(folder: Path, model: CodeGenForCausalLM) -> None:
    state = model.to(torch.float16).state_dict()
    found = []
    for form in ("sharded .bin", "sharded safetensors"):
        results = verify(store(folder, state, FORMS[form]), cases=["default"], layers=[1])
        found.append([(result.cell.component, result.findings) for result in results])
        for path in folder.glob("pytorch_model*"):
            path.unlink()
    assert found[0] == found[1]
    assert len(found[0]) == 13


@pytest.mark.parametrize("form", ["sharded .bin", "sharded safetensors"])
def test_tensors_of_several_shards_can_be_read_at_once(folder: Path, model: CodeGenForCausalLM, form: str) -> None:
    """The window reads a view in threads. One file is open at a time, and each thread must read from its own."""
    expected = model.state_dict()
    source = resolve(store(folder, expected, FORMS[form]))
    names = sorted(expected) * 8

    def read(name: str) -> bool:
        return torch.equal(source.read(name, expected[name].shape), expected[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, names))


@pytest.mark.parametrize("stored", ["transformer.wte.weight", "lm_head.weight", "both"])
def test_tied_embeddings_equal_those_of_from_pretrained(config: CodeGenConfig, tmp_path: Path, stored: str) -> None:
    config.tie_word_embeddings = True
    model = CodeGenForCausalLM(config)
    model.save_pretrained(tmp_path)
    names = {"transformer.wte.weight", "lm_head.weight"}
    state = {name: t for name, t in model.state_dict().items() if name not in names - {stored} or stored == "both"}
    store(tmp_path, state, one_bin)
    whole = CodeGenForCausalLM.from_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    for name in names:
        assert torch.equal(source.read(name, torch.Size([101, 64])), whole.state_dict()[name])
    results = verify(model=str(tmp_path), cases=["default"], components=["*embed"])
    assert len(results) == 2
    assert not failed(results)


def test_resized_vocabulary_is_verified_whole(model: CodeGenForCausalLM, tmp_path: Path) -> None:
    model.resize_token_embeddings(107)
    model.save_pretrained(tmp_path)
    results = verify(model=str(tmp_path), cases=["default", "stress"], components=["*embed"])
    assert {finding.shape[-1] for result in results for finding in result.findings if finding.stage == "unembed"} == {
        107
    }
    assert not failed(results)


def test_buffers_of_older_versions_are_ignored(folder: Path, model: CodeGenForCausalLM) -> None:
    state = dict(model.state_dict())
    for layer in range(2):
        prefix = f"transformer.h.{layer}.attn"
        state[f"{prefix}.causal_mask"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        state[f"{prefix}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
        state[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        state[f"{prefix}.embed_positions"] = torch.zeros(64, 8)
    assert torch.equal(resolve(store(folder, state, one_bin)).read(NAME, SHAPE), state[NAME])


def add(name: str) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(2)})


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("v_head.weight"), "v_head.weight, which CodeGen does not have"),
        (add("transformer.h.0.attn.qkv_proj.bias"), "qkv_proj.bias, which CodeGen does not have"),
        (drop("transformer.h.1.ln_1.bias"), "no tensor transformer.h.1.ln_1.bias: it is incomplete"),
        (drop("lm_head.weight"), "no tensor lm_head.weight"),
    ],
)
@pytest.mark.parametrize("write", [one_bin, FORMS["sharded safetensors"]])
def test_missing_or_surplus_tensor_is_reported(
    folder: Path, model: CodeGenForCausalLM, write: Write, change: Callable[[State], None], message: str
) -> None:
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(WeightsError, match=message):
        resolve(store(folder, state, write))


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_bin_with_code_is_refused_and_not_run(folder: Path, model: CodeGenForCausalLM) -> None:
    trace = folder / "ran"
    store(folder, {**model.state_dict(), "x": Payload(trace)}, one_bin)  # type: ignore[dict-item]
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()
    trace.unlink()
    with pytest.raises(WeightsError, match="could run code when it is loaded, so it is not loaded"):
        resolve(str(folder))
    assert not trace.exists()


def truncated(folder: Path, state: State) -> None:
    one_bin(folder, state)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated, "damaged"),
        (lambda folder, _: (folder / "pytorch_model.bin").touch(), "Fetch the file again"),
        (lambda folder, _: (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00."), "so old"),
        (lambda folder, state: torch.save({"state_dict": state}, folder / "pytorch_model.bin"), "not a state dict"),
        (lambda folder, state: torch.save(list(state), folder / "pytorch_model.bin"), "not a state dict"),
        (lambda folder, _: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "Fetch the file again"),
    ],
)
def test_damaged_file_is_reported(folder: Path, model: CodeGenForCausalLM, write: Write, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        resolve(store(folder, model.state_dict(), write))


def test_pickle_of_the_old_format_is_reported(folder: Path, model: CodeGenForCausalLM) -> None:
    def old(folder: Path, state: State) -> None:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    with pytest.raises(WeightsError, match="saved again"):
        resolve(store(folder, model.state_dict(), old))


@pytest.mark.parametrize("shard", ["../../x.bin", "/etc/passwd", "sub/x.bin", "..\\x.bin", "..", "", 7])
def test_index_with_a_path_to_another_folder_is_refused(folder: Path, model: CodeGenForCausalLM, shard: object) -> None:
    store(folder, model.state_dict(), FORMS["sharded .bin"])
    path = folder / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][NAME] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="do not trust it"):
        resolve(str(folder))


@pytest.mark.parametrize("content", ['{"weight_map":' + "[" * 100_000, '{"weight_map": {}}', "null", "\udcff"])
def test_damaged_index_is_reported(folder: Path, model: CodeGenForCausalLM, content: str) -> None:
    store(folder, model.state_dict(), FORMS["sharded safetensors"])
    (folder / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError, match="is not an index of shards"):
        resolve(str(folder))


def test_shard_without_an_indexed_tensor_is_reported(folder: Path, model: CodeGenForCausalLM) -> None:
    for form, pattern in (("sharded .bin", "pytorch_model-*"), ("sharded safetensors", "model-*")):
        store(folder, model.state_dict(), FORMS[form])
        for path in folder.glob(pattern):
            if path.suffix == ".bin":
                torch.save({"x": torch.zeros(1)}, path)
            else:
                save_file({"x": torch.zeros(1)}, path)
        with pytest.raises(WeightsError, match=rf"Cannot read {NAME}"):
            resolve(str(folder)).read(NAME, SHAPE)
        for path in folder.glob("pytorch_model*"):
            path.unlink()


def test_bin_is_unmapped_after_it_was_read(
    folder: Path, model: CodeGenForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux lists the mapped files. With a budget of 0 bytes, each read maps the file again and unmaps it."""
    monkeypatch.setattr(formats, "MOST_MAPPED", 0)
    source = resolve(store(folder, model.state_dict(), one_bin))
    tensors = [source.read(NAME, SHAPE) for _ in range(3)]
    assert all(torch.equal(tensor, model.state_dict()[NAME]) for tensor in tensors)
    assert Path("/proc/self/maps").read_text().count("pytorch_model.bin") == 0


def test_tensor_of_the_wrong_kind_is_reported(folder: Path, model: CodeGenForCausalLM) -> None:
    for wrong, message in (
        (torch.zeros(64, 64, dtype=torch.int8), r"stored as torch\.int8"),
        (torch.zeros(64, 64).to(torch.float8_e4m3fn), r"stored as torch\.float8_e4m3fn: .* float64, float32"),
        (torch.zeros(64, 64, dtype=torch.complex64), r"stored as torch\.complex64"),
        (torch.zeros(64, 64).to_sparse(), r"stored as torch\.sparse_coo"),
        (torch.zeros(1, 1).expand(64, 65), r"shape \[64, 65\]"),
    ):
        source = resolve(store(folder, {**model.state_dict(), NAME: wrong}, one_bin))
        with pytest.raises(WeightsError, match=message):
            source.read(NAME, SHAPE)


class Counting(FolderWeights):
    reads: Counter[str]

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        self.reads[name] += 1
        return super().read(name, shape)


def test_each_tensor_is_read_once_for_all_cells(folder: Path) -> None:
    known = resolve(str(folder))
    source = Counting(folder, known.config, known.origin)
    source.reads = Counter()
    axes = Axes(
        cases=("default",),
        rotary_dims=(8, 16),
        candidates=("cgverify", "faults:HeadsSwapped"),
        components=("embed", "attn.o", "unembed"),
    )
    plan = cells(describe_checkpoint("small", "auto", source), axes)
    candidates = {name: find_candidate(name) for name in axes.candidates}
    results = list(CheckpointVerifier(source, candidates, judge=Judge(with_sentence=False)).verify_all(plan))
    assert len(results) == len(plan)
    assert set(source.reads.values()) == {1}
    assert source.reads[NAME] == 1


def test_reference_has_stored_weights_and_candidate_copies(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")[NAME]
    window = Window(resolve(str(folder)))
    window.show(0)
    setting = ModelVariant(torch.float32, torch.device("cpu"), 8)
    references = [window.reference(setting) for _ in range(2)]
    weights = [model.transformer.h[0].attn.out_proj.weight for model in references]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    candidate = window.model(setting).transformer.h[0].attn.out_proj.weight
    candidate.data.zero_()
    assert torch.equal(weights[0], stored)
