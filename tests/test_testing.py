"""The plugin for pytest, in real runs of pytest that share one faulty candidate."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

import cgverify.runs.session  # noqa: F401 - pytester forgets what is imported first in its runs
from cgverify import load_run

pytest_plugins = "pytester"

ROOT = Path(__file__).parent.parent
CANDIDATE = """
from cgverify import CodeGenAttentionBridge

class Faulty(CodeGenAttentionBridge):
    def forward(self, *args, **kwargs):
        output, *rest = super().forward(*args, **kwargs)
        return output * 1.01, *rest
"""
TESTS = """
from cgverify.testing import parity_tests

test_parity = parity_tests(
    "codegen-nano",
    candidate="candidate:Faulty",
    dtypes=["float32", "bfloat16"],
    cases=["default", "stress", "decode"],
    components="blocks*",
    layers=0,
)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(candidate=CANDIDATE, test_bridge=TESTS)
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_inprocess("-p", "cgverify.testing", "-p", "no:xdist", "-W", "error", *arguments)


def test_each_component_dtype_and_case_is_a_test(suite: pytest.Pytester) -> None:
    listed = run(suite, "--collect-only", "-q").outlines
    assert "test_bridge.py::test_parity[blocks.attn-bfloat16-decode]" in listed
    assert "test_bridge.py::test_parity[blocks.mlp.in-float32-stress]" in listed
    assert "test_bridge.py::test_parity[blocks-float32-default]" in listed
    assert sum("::" in line for line in listed) == 2 * (10 * 2 + 2)


def test_component_that_its_block_covers_has_no_test(pytester: pytest.Pytester) -> None:
    """Without the block it has one: see `cgverify.plan.cases.IN_BLOCK`."""
    call = "parity_tests('codegen-nano', cases=['state', 'default'], layers=0, components={!r})"
    pytester.makepyfile(
        "from cgverify.testing import parity_tests\n"
        f"test_whole = {call.format(['blocks', 'blocks.ln1'])}\n"
        f"test_parts = {call.format('blocks.ln1')}\n"
    )
    found = run(pytester, "-v", "-k", "ln1", "--basetemp=base")
    found.assert_outcomes(passed=3)
    found.stdout.fnmatch_lines(["*test_whole?blocks.ln1-float32-default? PASSED*"])
    found.stdout.fnmatch_lines(["*test_parts?blocks.ln1-float32-state? PASSED*"])
    (run_of_whole,) = pytester.path.rglob("*test_whole/run.json")
    assert [result.cell.case for result in load_run(run_of_whole.parent).results] == ["default"]


def test_failing_test_shows_the_sentence_and_its_place(suite: pytest.Pytester) -> None:
    selection = "(attn-float32-default or attn-float32-decode or mlp-bfloat16-default) and not blocks-"
    found = run(suite, "-v", "-k", selection, "--junitxml=junit.xml", "--basetemp=base")
    found.assert_outcomes(passed=1, failed=2)
    text = found.stdout.str()
    assert "diverged codegen-nano blocks.0.attn, candidate:Faulty in float32, case default: returned breaks" in text
    assert "    cgverify all-components --model codegen-nano --component blocks.0.attn --case default" in text
    assert "testing.py" not in text
    (folder,) = {path.parent for path in (suite.path / "base").rglob("run.json")}
    assert (suite.path / "junit.xml").read_text().count(f'<property name="run_folder" value="{folder}"') == 3
    cells = [result.cell for result in load_run(folder).results]
    verified = [(cell.kind, cell.dtype, cell.case) for cell in cells]
    assert sorted(verified) == [
        ("attn", "float32", "decode"),
        ("attn", "float32", "default"),
        ("mlp", "bfloat16", "default"),
    ]


def test_first_failure_stops_and_is_run_again(suite: pytest.Pytester) -> None:
    run(suite, "-x", "-k", "attn-float32-d or embed").assert_outcomes(failed=1)
    run(suite, "--lf").assert_outcomes(failed=1)


def test_refused_cells_are_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from cgverify.testing import parity_tests\n"
        "test_parity = parity_tests('codegen-nano', components='blocks.attn', cases='default', layers=0, "
        "rotary_dims=[3])"
    )
    found = run(pytester, "-rs")
    found.assert_outcomes(skipped=1)
    assert "Nothing was compared: Hugging Face refuses rotary_dim 3: " in found.stdout.str()


def test_missing_checkpoint_fails_with_its_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from cgverify.testing import parity_tests\n"
        "test_parity = parity_tests('./nowhere', components='blocks.attn', cases='default')"
    )
    found = run(pytester)
    found.assert_outcomes(failed=1)
    assert "nowhere" in found.stdout.str()
    assert "Traceback" not in found.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("'codegen-nano', dtypes='float23'", "unknown dtype: did you mean 'float32'?"),
        ("'codegen-nano', components='blocks.atn'", "Unknown component 'blocks.atn': did you mean 'blocks.attn'?"),
        ("'codegen-nano', candidates=['a', 'b']", "Unknown argument 'candidates'"),
        ("'codegen-nano', components='embed', cases='decode'", "None of the cases is for one of the components"),
    ],
)
def test_wrong_argument_is_one_sentence(pytester: pytest.Pytester, arguments: str, sentence: str) -> None:
    pytester.makepyfile(f"from cgverify.testing import parity_tests\ntest_parity = parity_tests({arguments})")
    found = run(pytester)
    found.assert_outcomes(errors=1)
    assert sentence in found.stdout.str()
    assert "def parity_tests" not in found.stdout.str()


def test_pair_in_memory_fails_with_the_sentence(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import copy, pytest
        from transformers import CodeGenConfig, CodeGenForCausalLM
        from cgverify.bridge import boot

        @pytest.fixture
        def reference():
            sizes = {"vocab_size": 11, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}
            return CodeGenForCausalLM(CodeGenConfig(**sizes, bos_token_id=0, eos_token_id=0)).eval()

        @pytest.fixture
        def bridge(reference):
            return boot(copy.deepcopy(reference))
        """
    )
    pytester.makepyfile(
        """
        def test_good(parity, bridge, reference):
            assert parity(bridge, reference, cases="default").ok

        def test_bad(parity, bridge, reference):
            bridge.blocks[0].attn.register_forward_hook(lambda module, inputs, output: (output[0] * 1.01, *output[1:]))
            parity(bridge, reference, components="attn", cases="default")

        def test_not_a_pair(parity, reference):
            parity(reference, reference)
        """
    )
    found = run(pytester)
    found.assert_outcomes(passed=1, failed=2)
    found.stdout.fnmatch_lines(
        ["E *diverged in memory blocks.0.attn, bridge in float32*", "E *is not a bridge: give the TransformerBridge*"]
    )
    assert "testing.py" not in found.stdout.str()


def test_plugin_and_collection_import_nothing_heavy(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The entry point of pyproject.toml is installed in a folder on the path."""
    site = tmp_path_factory.mktemp("site")
    (entry,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"].items()
    described = site / "plugin_of_cgverify-0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-cgverify\nVersion: 0\n")
    (described / "entry_points.txt").write_text(f"[pytest11]\n{entry[0]} = {entry[1]}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            heavy = {"torch", "pandas", "transformers", "pydantic"} & set(sys.modules)
            print("plugin:", config.pluginmanager.has_plugin("cgverify.testing"), "heavy:", sorted(heavy))
        """
    )
    pytester.makepyfile("def test_nothing(): pass")
    assert "plugin: True heavy: []" in pytester.runpytest_subprocess("-p", "cgverify.testing").stdout.str()
    pytester.makepyfile(test_bridge=TESTS)
    assert "plugin: True heavy: ['pydantic']" in pytester.runpytest_subprocess("--collect-only").stdout.str()


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["load", "loadfile"])
def test_workers_share_one_run(suite: pytest.Pytester, distribution: str) -> None:
    arguments = ("-p", "cgverify.testing", "-n2", "--dist", distribution, "-k", "float32", "--basetemp=base", "-v")
    found = suite.runpytest_subprocess(*arguments)
    found.assert_outcomes(passed=16, failed=6)
    (folder,) = {path.parent for path in (suite.path / "base").rglob("run.json")}
    assert len(load_run(folder).results) == 22
    workers = {line.split()[0] for line in found.outlines if line.startswith("[gw")}
    assert len(workers) == (1 if distribution == "loadfile" else 2)
