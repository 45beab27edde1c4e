"""Compare a benchmark with an earlier one of the same machine, and decide whether a limit was exceeded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cgverify.bench.records import BenchRun, Measured
from cgverify.common.errors import RunFolderError, UsageError

MUST_AGREE = ("machine", "numerics")
"""Parts of the environment that decide a time. Figures of another machine or number of threads do not compare."""
FILE = "bench.json"


@dataclass(frozen=True)
class ScenarioChange:
    """One point of one candidate, in the baseline and now."""

    before: Measured
    now: Measured

    @property
    def factor(self) -> float | None:
        """The ratio now over the ratio in the baseline, or None if one of them was not measured."""
        return _quotient(self.now.ratio, self.before.ratio)

    @property
    def at_least(self) -> float | None:
        """The least factor that the two intervals allow."""
        return _quotient(self.now.low, self.before.high)

    @property
    def change(self) -> str:
        """`slower`, `faster`, `larger` or `smaller` if the intervals do not overlap, else `no change seen`."""
        at_most = _quotient(self.now.high, self.before.low)
        if self.at_least is None or at_most is None:
            return "cannot be compared"
        worse, better = ("slower", "faster") if self.now.unit == "s" else ("larger", "smaller")
        return worse if self.at_least > 1 else better if at_most < 1 else "no change seen"


def _quotient(now: float | None, before: float | None) -> float | None:
    return now / before if before and now is not None else None


def read(path: Path) -> BenchRun:
    """Read a benchmark from its `bench.json`, or from the folder that contains it.

    Raises:
        RunFolderError: the file does not exist or is damaged.
    """
    file = path / FILE if path.is_dir() else path
    try:
        return BenchRun.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(
            f"Cannot read {file}: {error.strerror}. Give a {FILE} that cgverify bench wrote."
        ) from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RunFolderError(
            f"{file} is not a benchmark of cgverify, or is damaged (at {where or 'its start'})."
        ) from error


def changes(before: BenchRun, now: BenchRun) -> list[ScenarioChange]:
    """Return what both runs measured, in the order of `now`.

    Raises:
        UsageError: the machine, threads, flags or model differ, or the runs have no point in common.
    """
    for part in MUST_AGREE:
        old, new = before.environment.get(part, {}), now.environment.get(part, {})
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                raise UsageError(
                    f"The baseline is of another machine or setting ({key} {old.get(key)}, here {new.get(key)}): "
                    "measure one here, because times of two machines do not compare."
                )
    if before.model != now.model:
        raise UsageError(f"The baseline is of {before.model}, not of {now.model}: give one of the same model.")
    known = {(each.point, each.candidate): each for each in before.measured}
    found = [
        ScenarioChange(known[each.point, each.candidate], each)
        for each in now.measured
        if (each.point, each.candidate) in known
    ]
    if not found:
        raise UsageError("The baseline measured nothing of what was measured now: give the options of the baseline.")
    return found


def over(measured: Iterable[Measured], limit: float) -> list[str]:
    """Describe what is certainly over `limit` times the reference: its whole interval is, or the candidate raised."""
    sentences = []
    for each in measured:
        where = f"{each.candidate}, {each.point.name}"
        if each.message:
            sentences.append(f"{where}: {each.message}")
        elif each.low is not None and each.low > limit:
            sentences.append(f"{where}: {each.low:.3f} to {each.high:.3f} times the reference, over {limit}")
    return sentences


def regressions(compared: Sequence[ScenarioChange], limit: float) -> list[str]:
    """Describe what certainly costs over `limit` times what it cost in the baseline, or no longer runs."""
    sentences = []
    for change in compared:
        where = f"{change.now.candidate}, {change.now.point.name}"
        if change.now.message and not change.before.message:
            sentences.append(f"{where}: {change.now.message}, but the baseline has a figure")
        elif change.at_least is not None and change.at_least > limit:
            sentences.append(
                f"{where}: ratio {change.now.ratio:.3f}, in the baseline {change.before.ratio:.3f}: "
                f"at least {change.at_least:.3f} times as much, over {limit}"
            )
    return sentences
