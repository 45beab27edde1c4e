"""Fixtures of all tests: a small random model, the trained one that ships, and the command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from command_line import ROOT, Cli, command
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.checkpoint.names import NANO


@pytest.fixture(scope="session", autouse=True)
def _quiet_hub() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def config() -> CodeGenConfig:
    """Return a config of two blocks with four heads of size 16, of which 8 dimensions are rotated."""
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
def cli(tmp_path: Path) -> Cli:
    """Run cgverify as a process in an empty folder, from which the modules in tests/support can be imported."""
    python_path = os.pathsep.join([str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": python_path, "COLUMNS": "160", **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
