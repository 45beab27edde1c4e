"""Plans from YAML: their meaning, and the errors in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_line import ROOT

from cgverify.checkpoint.lookup import sketch
from cgverify.checkpoint.names import ABSENT
from cgverify.checkpoint.prompt import UNSEEN
from cgverify.common.errors import ConfigError, NothingToVerifyError
from cgverify.common.records import Cell, Checkpoint
from cgverify.plan.axes import Axes, CheckpointAxes, Limits
from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES
from cgverify.plan.cells import Shard, plan
from cgverify.plan.yaml_plan import load_plan, parse_plan

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def checkpoint(model: str = "m", n_layers: int = 6) -> Checkpoint:
    shape = {"n_layers": n_layers, "rotary_dim": 8, "n_positions": 64, "prompt": UNSEEN}
    return ABSENT.model_copy(update={"name": model, "asked": model, "digest": f"digest of {model}", **shape})


def planned(text: str, n_layers: int = 6) -> list[Cell]:
    """Return the cells of a plan in YAML, over checkpoints with a number of layers."""
    config = parse_plan(yaml.safe_load(text))
    requests = config.all_requests()
    found = {(one.model, one.weights): checkpoint(one.model, n_layers) for one in requests}
    return plan(requests, found, config.exclude)


def test_model_alone_has_the_defaults_of_all_components() -> None:
    (request,) = parse_plan({"models": "m"}).all_requests()
    assert request == CheckpointAxes("m", "auto", request.axes)
    assert {cell.case for cell in planned("models: m", n_layers=2)} == set(DEFAULT_CASES)
    assert planned("{models: m, layers: all}") == planned("models: m")


def test_every_combination_of_the_axes_is_a_cell() -> None:
    cells = planned(
        "{models: [a, b], dtypes: [float32, float16], rotary_dims: [own, none], seeds: [0, 1], layers: ['0-1', '3'], "
        "components: attn, cases: default, batch_size: 3, seq_len: 5}"
    )
    assert len(cells) == 2 * 2 * 2 * 2 * 3
    assert {cell.layer for cell in cells} == {0, 1, 3}
    assert {cell.rotary_dim for cell in cells} == {8, "none"}
    assert {(cell.batch_size, cell.seq_len) for cell in cells} == {(3, 5)}


def test_own_rotary_dim_and_its_value_are_one() -> None:
    assert {cell.rotary_dim for cell in planned("{models: m, rotary_dims: [own, 8, 16]}")} == {8, 16}
    assert len(planned("{models: m, rotary_dims: [own, 8]}")) == len(planned("models: m"))


def test_layers_are_thinned_evenly_and_other_axes_cut() -> None:
    cells = planned("{models: m, limits: {layers: 3, seeds: 1}, seeds: [7, 8], components: ln1}", n_layers=34)
    assert sorted({cell.layer for cell in cells if cell.layer is not None}) == [0, 16, 33]
    assert {cell.seed for cell in cells} == {7}
    one = planned("{models: m, limits: {layers: 1}, components: ln1, cases: default}")
    assert [cell.layer for cell in one] == [0]


def test_every_axis_can_be_limited() -> None:
    assert set(Limits.model_fields) - {"cells"} == set(Axes.model_fields) - {
        *("components", "batch_size", "seq_len", "limits")
    }
    cells = planned("{models: m, attentions: [eager, sdpa], limits: {attentions: 1}, cases: default}")
    assert {cell.attention for cell in cells} == {"eager"}


def test_include_takes_other_keys_from_the_top_without_repeats() -> None:
    text = "{models: m, components: attn, layers: 0, cases: default, include: [{dtypes: [float32, float16]}]}"
    assert [(cell.dtype, cell.layer, cell.kind) for cell in planned(text)] == [
        ("float32", 0, "attn"),
        ("float16", 0, "attn"),
    ]


def test_exclude_leaves_out_cells_that_fit_every_key() -> None:
    rule = "{models: '*16B', components: 'mlp*', cases: stress}"
    left = planned(f"{{models: [big-16B, m], cases: [default, stress], exclude: [{rule}]}}")
    assert not [cell for cell in left if cell.model == "big-16B" and cell.kind == "mlp.in" and cell.case == "stress"]
    for kept in (("big-16B", "mlp.in", "default"), ("m", "mlp.in", "stress"), ("big-16B", "attn", "stress")):
        assert [cell for cell in left if (cell.model, cell.kind, cell.case) == kept]


def test_checkpoint_of_unknown_shape_has_a_cell_per_setting() -> None:
    config = parse_plan({"models": ["m"], "cases": "decode", "layers": 3, "dtypes": ["float32", "float16"]})
    absent = checkpoint(n_layers=0).model_copy(update={"problem": "not there"})
    assert [cell.dtype for cell in plan(config.all_requests(), {("m", "auto"): absent})] == ["float32", "float16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m", "unknown key 'model': did you mean 'models'?"),
        ("{models: m, dtpyes: float32}", "unknown key 'dtpyes': did you mean 'dtypes'?"),
        ("{models: [{modle: m}]}", "unknown key 'modle' in models[0]: did you mean 'model'?"),
        ("{models: m, limits: {layer: 2}}", "unknown key 'layer' in limits: did you mean 'layers'?"),
        ("{models: m, exclude: [{case: decode}]}", "unknown key 'case' in exclude[0]: did you mean 'cases'?"),
        ("{models: m, include: [{dtype: float64}]}", "unknown key 'dtype' in include[0]: did you mean 'dtypes'?"),
        ("dtypes: float32", "models is missing"),
        ("{models: m, dtypes: [float32, float33]}", "dtypes[1] 'float33': unknown dtype: did you mean 'float32'?"),
        ("{models: m, cases: stres}", "cases[0] 'stres': unknown case: did you mean 'stress'?"),
        ("{models: m, exclude: [{devices: gpu}]}", "exclude[0].devices[0] 'gpu': torch knows no such device"),
        ("{models: m, seeds: ['0']}", "seeds[0] '0': input should be a valid integer"),
        ("{models: m, seeds: [yes]}", "seeds[0] True: input should be a valid integer"),
        ("{models: m, batch_size: two}", "batch_size 'two'"),
        ("{models: m, limits: {layers: 0}}", "limits.layers 0"),
        ("{models: m, layers: [-1]}", "layers: write all, or numbers"),
        ("{models: m, layers: 7-5}", "layers '7-5': write all, or numbers"),
        ("{models: m, rotary_dims: half}", "rotary_dims[0] 'half': write own, none, or a number"),
        ("{models: 3}", "models[0] 3: write a name"),
        ("[m]", "a plan is a mapping"),
        ("{models: m, models: n}", "the key 'models' is repeated"),
        ("{models: [m", "is not YAML"),
        ("models: m\n? [a, b] : 2", "line 2 is not YAML: a key is a word"),
        ("models: m\n? {a: b}\n: 2", "line 2 is not YAML: a key is a word"),
        ("\nmodels: 2024-13-45", "line 2 is not YAML: '2024-13-45' looks like a value of timestamp, and is not one"),
        ("{models: m, seeds: 0x_}", "line 1 is not YAML: '0x_' looks like a value of int, and is not one"),
        ("{models: m, seeds: !!bool maybe}", "'maybe' looks like a value of bool"),
        ("{models: m, seeds: !!timestamp maybe}", "'maybe' looks like a value of timestamp"),
        (f"{{models: m, seeds: 1{'0' * 5000}}}", "looks like a value of int"),
        ("models: \0", "is not YAML: unacceptable character"),
        (f"models: {'[' * 3000}{']' * 3000}", "too many brackets within brackets"),
        ("{models: m, include: [{limits: {cells: 5}}]}", "include[0].limits.cells: it is for the whole plan"),
    ],
)
def test_error_in_a_plan_is_reported_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_plan(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "models: []",
        "{models: m, dtypes: []}",
        "{models: m, layers: []}",
        "{models: m, components: []}",
        "{models: m, include: [{dtypes: []}]}",
        "{models: m, exclude: [{models: m}]}",
    ],
)
def test_plan_without_a_cell_is_an_error(text: str) -> None:
    with pytest.raises(NothingToVerifyError, match="The plan is empty"):
        planned(text)
    assert NothingToVerifyError.exit_code == 5


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read"):
        load_plan(tmp_path / "nowhere.yaml")


def test_plan_without_a_cell_is_reported_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("{models: m, layers: []}")
    with pytest.raises(NothingToVerifyError, match=f"{path}: The plan is empty: layers names nothing"):
        load_plan(path)


def test_limit_of_cells_counts_included_products() -> None:
    config = parse_plan({"models": "m", "limits": {"cells": 5}, "include": [{"dtypes": "float16"}]})
    cells = planned("{models: m, include: [{dtypes: float16}]}")
    with pytest.raises(ConfigError, match=f"m has {len(cells)} cells, and limits.cells allows 5"):
        config.require_sense(cells, cells)


def test_useless_rule_and_too_many_cells_are_refused() -> None:
    cells = planned("models: m")
    with pytest.raises(ConfigError, match=r"exclude\[0\] fits no cell"):
        parse_plan({"models": "m", "exclude": [{"models": "n"}]}).require_sense(cells, cells)
    with pytest.raises(ConfigError, match=f"m has {len(cells)} cells, and limits.cells allows 5"):
        parse_plan({"models": "m", "limits": {"cells": 5}}).require_sense(cells, cells)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_a_partition_with_whole_views(count: int) -> None:
    cells = planned("{models: [a, b, c], dtypes: [float32, float16], seeds: [0, 1]}")
    shards = [Shard(index, count).of(cells) for index in range(1, count + 1)]
    assert sorted(cell.id for shard in shards for cell in shard) == sorted(cell.id for cell in cells)
    owner = {}
    for index, shard in enumerate(shards):
        for cell in shard:
            place = cell.layer if cell.layer is not None else cell.kind
            assert owner.setdefault((cell.model, place), index) == index
    assert max(map(len, shards)) < 2 * min(map(len, shards)), "layers are spread evenly"


def test_shards_of_a_checkpoint_do_not_depend_on_the_others() -> None:
    def of_b(text: str) -> list[str]:
        return [cell.id for cell in Shard(1, 3).of(planned(text)) if cell.model == "b"]

    assert of_b("models: [a, b]") == of_b("models: [b]") != []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_plan_in_configs_is_valid(path: Path) -> None:
    config = load_plan(path)
    requests = config.all_requests()
    found = {
        (one.model, one.weights): sketch(one.model, one.weights).model_copy(update={"prompt": UNSEEN})
        for one in requests
    }
    cells = plan(requests, found, config.exclude)
    config.require_sense(cells, plan(requests, found))
    assert path.read_text().startswith("# ")


def test_nightly_plan_has_the_twelve_checkpoints_of_salesforce() -> None:
    models = {entry.model for entry in load_plan(ROOT / "configs" / "nightly.yaml").models}
    assert models >= {
        f"codegen-{size}-{kind}" for size in ("350M", "2B", "6B", "16B") for kind in ("mono", "nl", "multi")
    }


def test_dtype_regression_has_every_case_and_dtype() -> None:
    config = load_plan(ROOT / "configs" / "dtype-regression.yaml")
    assert set(config.cases) == set(CASE_KINDS)
    assert len(config.dtypes) == 4
