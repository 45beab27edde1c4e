"""A plugin for pytest: `parity_tests` makes the tests of a bridge, and the fixture `parity` checks a pair in memory.

pytest loads this module in every suite of an environment that has cgverify. So it imports little at the top,
and neither torch nor pandas before a parity test runs.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cgverify.common.errors import CgverifyError, NothingToVerifyError, UnknownNameError
from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES, KINDS, PER_LAYER

if TYPE_CHECKING:
    import os

    from cgverify.api import Result

    Parity = Callable[..., Result]

INSIDE = ("weights", "layers", "devices", "rotary_dims", "attentions", "seeds", "batch_size", "seq_len")
"""The keys of a plan whose values are all verified in each test."""


class _Group(NamedTuple):
    """The cells of one test: all layers, and all values of the axes `INSIDE`."""

    kind: str
    dtype: str
    case: str

    @property
    def id(self) -> str:
        return f"{_component(self.kind)}-{self.dtype}-{self.case}"


def parity_tests(
    model: str | os.PathLike[str],
    candidate: str = "cgverify",
    *,
    dtypes: str | Iterable[str] = "float32",
    cases: str | Iterable[str] = DEFAULT_CASES,
    components: str | Iterable[str] = (),
    **plan: Any,
) -> Callable[..., None]:
    """Return a test function with one test per component, dtype and case.

        test_parity = parity_tests("codegen-nano", candidate="my_package.bridge:Bridge", dtypes=["float32", "bfloat16"])

    A test fails with the sentence of its fault, and is skipped if all its cells are `unsupported`. The first test
    that runs verifies what all selected tests of the function need, in one run. Each test has the folder of that run as
    its property `run_folder`. Workers of pytest-xdist share the run; the others wait for the one that verifies.

    Args:
        model: a name of `cgverify models`, a folder or a hub id.
        candidate: the bridge to verify, as `--bridge` takes it.
        cases: names of cases, or `all`; by default those of `cgverify all-components`.
        components: globs over the components in test ids, such as `blocks.attn*`. By default all of them.
        plan: more keys of a plan (`cgverify.plan.yaml_plan`): `INSIDE`. A test verifies all their values.

    Raises:
        pytest.Collector.CollectError: an argument is wrong. pytest shows the sentence as an error of the file.
    """
    from cgverify.plan.yaml_plan import parse_plan, plain

    given = {"models": model, "candidates": candidate, "dtypes": dtypes, "cases": cases}
    try:
        for key in plan:
            if key not in INSIDE:
                raise UnknownNameError("argument", key, INSIDE)
        described: dict[str, Any] = plain({**given, **plan})
        kinds = _kinds([components] if isinstance(components, str) else list(components), parse_plan(described).cases)
        groups = _groups({**described, "components": kinds})
    except CgverifyError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    runs: dict[Path, Result] = {}

    @pytest.mark.parametrize(_Group._fields, [pytest.param(*group, id=group.id) for group in groups])
    def test_parity(
        kind: str,
        dtype: str,
        case: str,
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        folder = _shared_folder(request, tmp_path_factory)
        if folder not in runs:
            selected = {
                _Group(*(str(item.callspec.params[name]) for name in _Group._fields))
                for item in request.session.items
                if isinstance(item, pytest.Function) and item.function is test_parity
            }
            runs[folder] = _carry_out(_only(selected, described), folder)
        request.node.user_properties.append(("run_folder", str(folder)))  # record_property warns of a JUnit family
        _require_parity(runs[folder], _Group(kind, dtype, case))

    # pytest shows the place of a test, which is the call of `parity_tests`.
    caller = inspect.stack(0)[1]
    test_parity.__code__ = test_parity.__code__.replace(co_filename=caller.filename, co_firstlineno=caller.lineno)
    return test_parity


@pytest.fixture
def parity() -> Parity:
    """Check a bridge in memory: `parity(bridge, reference)` fails with the sentence of the fault.

    It takes the arguments of `cgverify.verify`, and returns its `Result` if every cell passes.
    """

    def check(bridge: Any, reference: Any, /, **axes: Any) -> Result:
        __tracebackhide__ = True
        from cgverify.api import verify

        try:
            result = verify(bridge, reference, **axes)
        except CgverifyError as error:
            why = str(error)
        else:
            if result.ok:
                return result
            why = "\n".join(result.reasons())
        pytest.fail(why)

    return check


def _component(kind: str) -> str:
    """Return a component's name in the bridge without the number of its layer: `blocks.attn.q`, `blocks`, `embed`."""
    if kind not in PER_LAYER:
        return kind
    return "blocks" if kind == "block" else f"blocks.{kind}"


def _kinds(globs: Collection[str], cases: Collection[str]) -> list[str]:
    """Return the kinds of component that globs over the names in test ids select, and that one of the cases is for.

    Raises:
        UnknownNameError: a glob fits no component.
        NothingToVerifyError: none of the cases is for one of the components.
    """
    names = {kind: _component(kind) for kind in KINDS}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names.values()):
            raise UnknownNameError("component", glob, names.values())
    kinds = [kind for kind, name in names.items() if not globs or any(fnmatchcase(name, glob) for glob in globs)]
    kinds = [kind for kind in kinds if any(kind in CASE_KINDS[case] for case in cases)]
    if not kinds:
        raise NothingToVerifyError("None of the cases is for one of the components: name others.")
    return kinds


def _groups(plan: dict[str, Any]) -> list[_Group]:
    """Return the groups of cells that a plan has for any checkpoint, in report order.

    Raises:
        CgverifyError: the plan is wrong.
    """
    from cgverify.common.records import Checkpoint, Prompt
    from cgverify.plan.cells import cells
    from cgverify.plan.yaml_plan import parse_plan

    (request,) = parse_plan(plan).requests()
    names = dict.fromkeys(("name", "asked", "weights", "origin", "digest"), "")
    sizes = {"n_layers": 1, "rotary_dim": 2, "n_positions": 1 << 20, "n_embd": 1, "vocab_size": 1}
    any_checkpoint = Checkpoint(**names, **sizes, prompt=Prompt(tokens=tuple(range(64)), origin=""))
    planned = cells(any_checkpoint, request.axes.model_copy(update={"layers": [0]}))
    return list(dict.fromkeys(_Group(cell.kind, cell.dtype, cell.case) for cell in planned))


def _only(selected: Collection[_Group], plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan with the cells of the selected groups alone."""
    kinds, dtypes, cases = (list(dict.fromkeys(values)) for values in zip(*sorted(selected), strict=True))
    narrowed = {**plan, "components": kinds, "dtypes": dtypes}
    if set(plan["cases"]) != set(DEFAULT_CASES):  # of which a plan has some in one layer only
        narrowed["cases"] = cases
    others = [group for group in _groups(narrowed) if group not in selected]
    rules = [{"components": group.kind, "dtypes": group.dtype, "cases": group.case} for group in others]
    return {**narrowed, "exclude": rules}


def _shared_folder(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a test function, which all workers of pytest-xdist on this machine share."""
    base = factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base
    return base / re.sub(r"\W+", "-", request.node.nodeid.split("[")[0])


def _carry_out(plan: dict[str, Any], folder: Path) -> Result:
    """Verify a plan, unless another worker has done so, and return the run."""
    from filelock import FileLock

    from cgverify.api import load_run, sweep

    with FileLock(f"{folder}.lock"), warnings.catch_warnings(action="ignore"):
        if (folder / "summary.csv").exists():  # written at the end of a run
            return load_run(folder)
        try:
            return sweep(plan, folder, resume=True)
        except CgverifyError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None


def _require_parity(result: Result, group: _Group) -> None:
    """Fail or skip the test of a group, unless all its cells pass."""
    from cgverify.api import Result

    if problem := next((one.problem for one in result.run.checkpoints if one.problem), ""):
        pytest.fail(problem, pytrace=False)
    own = tuple(one for one in result.results if (one.cell.kind, one.cell.dtype, one.cell.case) == group)
    found = Result(result.run, own, result.folder, len(own))
    if found.exit_code == 5:
        pytest.skip(found.reasons()[0])
    if not found.ok:
        pytest.fail("\n".join([*found.reasons(), f"Run folder: {result.folder}"]), pytrace=False)
