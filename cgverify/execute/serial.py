"""A plan -> findings, one cell after another in this process.

The order is the weights': a view of the window after another, in it every setting, in it every candidate, so that a
checkpoint is read once whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch

from cgverify import verify
from cgverify.candidate import Candidate
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Setting, View, Window, refusal
from cgverify.errors import CandidateError, DeviceError, WeightsError
from cgverify.records import Cell, CellResult, RotaryDim, Verdict


def run(
    cells: Sequence[Cell],
    source: Source,
    candidates: Mapping[str, Candidate],
    keep: verify.Keep = verify.keep_nothing,
    done: Collection[str] = (),
) -> Iterator[CellResult]:
    """Verify cells of one checkpoint, each result as it is found.

    Args:
        candidates: by the name that cells have for them.
        keep: what is done with the tensors of findings.
        done: ids of cells whose results are known already and are not given again. Where others of their view are
            left they run with them: the last digits of a product depend on how many rows are multiplied at once, and a
            run that was interrupted is to find what an uninterrupted one finds.
    """
    window = Window(source)
    refusals = {dim: refusal(source.config, dim) for dim in {cell.rotary_dim for cell in cells}}
    possible = [cell for cell in cells if refusals[cell.rotary_dim] is None]
    for cell in cells:
        if (reason := refusals[cell.rotary_dim]) is not None and cell.id not in done:
            yield from verify.not_run([cell], Verdict.UNSUPPORTED, reason)
    for view, in_view in groupby(sorted(possible, key=_turn), key=_view):
        together = list(in_view)
        if any(cell.id not in done for cell in together):
            results = _run_view(view, together, window, source, candidates, keep)
            yield from (result for result in results if result.cell.id not in done)


def _run_view(
    view: View,
    cells: list[Cell],
    window: Window,
    source: Source,
    candidates: Mapping[str, Candidate],
    keep: verify.Keep,
) -> Iterator[CellResult]:
    try:
        window.show(view)
    except WeightsError as error:
        yield from verify.not_run(cells, Verdict.ERROR, str(error))
        return
    spread = window.spread()
    for (dtype, device, rotary_dim), in_setting in groupby(cells, key=_setting):
        setting = Setting(getattr(torch, dtype), torch.device(device), rotary_dim)
        reference = verify.Reference(window.reference(setting), source.config, spread)
        for name, of_candidate in groupby(in_setting, key=lambda cell: cell.candidate):
            yield from _run_candidate(candidates[name], list(of_candidate), reference, window, setting, keep)


def _run_candidate(
    candidate: Candidate,
    cells: list[Cell],
    reference: verify.Reference,
    window: Window,
    setting: Setting,
    keep: verify.Keep,
) -> list[CellResult]:
    try:
        bridge = candidate.boot(window.model(setting))
    except CandidateError:
        raise
    except (Exception, SystemExit) as error:  # a candidate may fail in any way, and that is a finding
        return verify.candidate_failed(cells, verify.CandidateFailedError("boot", error))
    results, observed = [], []
    for cell in cells:
        try:
            observed.append(verify.observe(cell, reference, bridge))
        except verify.CandidateFailedError as error:
            results += verify.candidate_failed([cell], error)
    return verify.judge(observed, reference.parameters, keep) + results


def _view(cell: Cell) -> View:
    return cell.kind if cell.layer is None else cell.layer


def _turn(cell: Cell) -> tuple[object, ...]:
    """The order of execution."""
    layer = -1 if cell.kind == "embed" else 1 << 30 if cell.layer is None else cell.layer
    end = "" if cell.layer is not None else cell.kind
    return (layer, end, cell.dtype, cell.device, str(cell.rotary_dim), cell.candidate)


def _setting(cell: Cell) -> tuple[str, str, RotaryDim]:
    return cell.dtype, cell.device, cell.rotary_dim


def require_devices(devices: Iterable[str]) -> None:
    """Raise DeviceError for the first device that this machine has not."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in devices:
        if not present[device]:
            raise DeviceError(
                f"This machine has no {device} device: choose another --device, or run where there is one."
            )
