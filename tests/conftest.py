"""Settings and fixtures of all tests: a small random model, the trained one that ships, and the command line."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import Cli, fork
from hypothesis import settings

from cgverify.checkpoint.names import NANO
from cgverify.common.processors import processors

if TYPE_CHECKING:
    from transformers import CodeGenConfig, CodeGenForCausalLM


os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # torch is not imported yet
settings.register_profile("few", max_examples=10, deadline=None)
settings.register_profile("many", max_examples=300, deadline=None)
settings.load_profile("few")


def pytest_xdist_auto_num_workers() -> int:
    return processors()


@pytest.fixture(autouse=True, scope="module")
def _only_new_objects_collected() -> None:
    """Exclude what exists from garbage collections, as a command does. Every bridge that is freed needs one.

    `cgverify.verify` and `sweep` include it again when they return, so this is done for each module.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def config() -> CodeGenConfig:
    """Return a config of two blocks with four heads of size 16, of which 8 dimensions are rotated."""
    from transformers import CodeGenConfig

    return CodeGenConfig(
        vocab_size=101,
        n_positions=64,
        n_ctx=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        rotary_dim=8,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["CodeGenForCausalLM"],
    )


@pytest.fixture
def model(config: CodeGenConfig) -> CodeGenForCausalLM:
    import torch
    from transformers import CodeGenForCausalLM

    torch.manual_seed(0)
    return CodeGenForCausalLM(config).eval()


@pytest.fixture
def folder(model: CodeGenForCausalLM, tmp_path: Path) -> Path:
    """Return the folder of the small model, as `save_pretrained` writes it."""
    path = tmp_path / "small"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def nano() -> Path:
    return NANO


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Run cgverify in an empty folder, as a process that is forked from a server that has imported torch."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("streams")
        output, errors = folder / "output", folder / "errors"
        variables = {"COLUMNS": "160", **environment}
        process = fork(*arguments, cwd=tmp_path, output=output, errors=errors, environment=variables)
        process.join(240)
        process.kill()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, output.read_text(), errors.read_text())

    return run
