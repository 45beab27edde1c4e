"""Run in a process that has the simulated device: print as JSON what torch and cgverify do with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from hugging_face import to_dtype
from sides import small_config
from transformers import CodeGenForCausalLM

import cgverify
from cgverify.bench.timing import timer
from cgverify.bridge import boot
from cgverify.common.devices import present_devices, require_devices
from cgverify.common.errors import DeviceError
from cgverify.common.numerics import pin_numerics


def message_of(use: Callable[[], object]) -> str:
    try:
        use()
    except (RuntimeError, DeviceError) as error:
        return str(error)
    return ""


def refused() -> dict[str, str]:
    """Return what torch says of operations on two devices, by operation."""
    ours, theirs, other = torch.ones(2, 2, device="sim"), torch.ones(2, 2), torch.ones(2, 2, device="sim:1")
    uses: dict[str, Callable[[], object]] = {
        "add": lambda: ours + theirs,
        "product": lambda: torch.nn.functional.linear(theirs, ours),
        "cat": lambda: torch.cat([ours, theirs]),
        "other": lambda: ours @ other,
    }
    return {name: message_of(use) for name, use in uses.items()}


def synchronizations_of_a_reading() -> int:
    before = torch.ops.sim.synchronizations()
    timer()
    return int(torch.ops.sim.synchronizations() - before)


def verified_pair(compatibility: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = to_dtype(CodeGenForCausalLM(small_config(n_layer=1)).eval().to("sim:1"), torch.bfloat16)
    bridge = boot(copy.deepcopy(model))
    if compatibility:
        bridge.enable_compatibility_mode()
    result = cgverify.verify(bridge, model, cases=["default", "decode"])
    return {"devices": sorted(set(result.findings["device"])), "exit_code": result.exit_code}


def errors(**axes: Any) -> list[tuple[str, str, str, str]]:
    """Verify layer 0 on the device. Return dtype, case, verdict and message of each finding that is an error."""
    found = cgverify.verify("codegen-nano", layers=[0], devices="sim", **axes).findings
    columns = found[["dtype", "case", "verdict", "message"]][~found["verdict"].isin(["bitwise", "bounded"])]
    return list(columns.drop_duplicates().itertuples(index=False, name=None))


def without_random_state() -> list[tuple[str, str, str, str]]:
    del torch.sim.get_rng_state  # type: ignore[attr-defined]
    return errors(cases=["default", "train", "backward"], components=["attn"])


if __name__ == "__main__":
    seen = {
        "present": present_devices(),
        "gpu": pin_numerics(1)["gpu"],
        "refused": refused(),
        "synchronizations": synchronizations_of_a_reading(),
        "absent": message_of(lambda: require_devices(["cpu", "sim", "sim:7"])),
        "pair": verified_pair(False),
        "compatible": verified_pair(True),
        "dtypes": errors(dtypes=["float64", "float32"], components=["ln1"]),
        "random": without_random_state(),
    }
    print(json.dumps(seen))
