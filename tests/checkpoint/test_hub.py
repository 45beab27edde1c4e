"""Checkpoints of the hub: the files that are fetched, and each refusal. The hub is a server on this machine."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from command_line import command
from hub_server import COMMIT, serving
from transformers import CodeGenForCausalLM

from cgverify.checkpoint.disk import on_this_disk
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import RandomWeights
from cgverify.common.errors import CgverifyError, CheckpointMissingError, UsageError, WeightsError

MODEL = "some/codegen"
NAME, SHAPE = "lm_head.weight", torch.Size([101, 64])


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The small model on a hub, in both formats and with files that are not needed, and an empty cache."""
    (folder / "pytorch_model.bin").write_bytes(b"not wanted where there is safetensors")
    (folder / "README.md").write_text("not wanted")
    with serving(folder, MODEL) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield address


def test_download_has_one_format_and_is_found_again(
    hub: str, model: CodeGenForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_this_disk(MODEL) is None
    source = resolve(MODEL, "pretrained")
    assert torch.equal(source.read(NAME, SHAPE), model.state_dict()[NAME])
    assert source.origin == f"{MODEL}@{COMMIT} (hub cache)"
    folder = on_this_disk(MODEL)
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for weights in ("auto", "pretrained"):
        assert resolve(MODEL, weights).digest == source.digest


def test_repository_of_bin_files_is_fetched(hub: str, folder: Path, model: CodeGenForCausalLM) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(resolve(MODEL, "pretrained").read(NAME, SHAPE), model.state_dict()[NAME])


@pytest.mark.parametrize("revision", ["v2", COMMIT])
def test_revision_in_the_name_is_fetched(hub: str, revision: str) -> None:
    with pytest.raises(CheckpointMissingError, match="no such checkpoint in the hub cache"):
        resolve(f"{MODEL}@{revision}")
    assert resolve(f"{MODEL}@{revision}", "pretrained").origin == f"{MODEL}@{COMMIT} (hub cache)"
    assert resolve(f"{MODEL}@{revision}").config.n_embd == 64
    assert on_this_disk(MODEL) is None
    assert on_this_disk(MODEL, revision) is not None


def test_missing_revision_never_becomes_random_weights(hub: str) -> None:
    assert isinstance(resolve("codegen-350M"), RandomWeights)
    with pytest.raises(CheckpointMissingError, match="codegen-350M@v2"):
        resolve("codegen-350M@v2")


def test_interrupted_download_is_not_a_checkpoint(hub: str) -> None:
    resolve(MODEL, "pretrained")
    folder = on_this_disk(MODEL)
    assert folder is not None
    (folder / "model.safetensors").unlink()
    assert on_this_disk(MODEL) is None
    assert resolve(MODEL, "pretrained").config.n_embd == 64


def test_other_model_is_refused_before_its_weights_are_fetched(hub: str, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.CodeGen2"}}))
    with pytest.raises(CheckpointMissingError, match="CodeGen2"):
        resolve(MODEL, "pretrained")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_repository_without_weights_is_reported(hub: str, folder: Path) -> None:
    for path in ("model.safetensors", "pytorch_model.bin"):
        (folder / path).unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        resolve(MODEL, "pretrained")


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("some/gated", "some/gated is gated: accept its terms"),
        ("some/absent", "no some/absent on the hub, or it is private"),
        ("some/busy", "limits the number of requests"),
        ("some/broken", "Cannot fetch some/broken from the hub: Server error"),
        (f"{MODEL}@v9", "has no revision 'v9' on the hub"),
    ],
)
def test_each_refusal_of_the_hub_is_one_sentence(hub: str, repository: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as refusal:
        resolve(repository, "pretrained")
    assert refusal.value.exit_code == 3
    assert "\n" not in str(refusal.value)


def test_missing_network_and_offline_mode_are_reported(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"Cannot fetch some/codegen from the hub: .*Check the network"):
        resolve(MODEL, "pretrained")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="not in the hub cache, and HF_HUB_OFFLINE is set"):
        resolve(MODEL, "pretrained")


def test_text_that_is_not_a_hub_id_is_reported(hub: str) -> None:
    error: type[CgverifyError] = UsageError
    with pytest.raises(error, match="neither a folder nor a hub id"):
        resolve("a/b/c", "pretrained")


def test_download_is_shown_on_a_terminal(hub: str, tmp_path: Path) -> None:
    """On a pseudo-terminal, a process shows the bars of the hub's client, then the run."""
    arguments = command(
        *("all-components", "--model", MODEL, "--weights", "pretrained", "--component", "embed", "--case", "default")
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    while chunk := read_some(ours):
        seen += chunk
    output = process.communicate(timeout=120)[0].decode()
    shown = seen.decode()
    assert process.returncode == 0, shown
    assert "Download complete" in shown
    assert "100%" in shown
    assert "embed" in output


def read_some(descriptor: int) -> bytes:
    """Return what a process wrote to its terminal; nothing after it has ended, which Linux reports as an error."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""
