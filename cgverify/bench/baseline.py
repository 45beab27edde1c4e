"""A benchmark beside an earlier one of the same machine: what became slower or larger, and the gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cgverify.bench.records import BenchRun, Measured
from cgverify.common.errors import RunFolderError, UsageError

SAME = ("machine", "numerics")
"""Parts of the environment that decide a time: figures of another machine, or of other threads, say nothing."""
FILE = "bench.json"


@dataclass(frozen=True)
class ScenarioChange:
    """One point of one candidate, then and now."""

    before: Measured
    now: Measured

    @property
    def factor(self) -> float | None:
        """The ratio now over the ratio then; None where one of them was not measured."""
        if self.before.ratio and self.now.ratio is not None:
            return self.now.ratio / self.before.ratio
        return None

    @property
    def at_least(self) -> float | None:
        """What the two intervals leave as the least factor."""
        if self.before.high and self.now.low is not None:
            return self.now.low / self.before.high
        return None

    @property
    def at_most(self) -> float | None:
        if self.before.low and self.now.high is not None:
            return self.now.high / self.before.low
        return None

    @property
    def says(self) -> str:
        """`slower`, `faster`, `larger`, `smaller` where the intervals do not meet; `no change seen` where they do."""
        if self.at_least is None or self.at_most is None:
            return "cannot be compared"
        worse, better = ("slower", "faster") if self.now.unit == "s" else ("larger", "smaller")
        return worse if self.at_least > 1 else better if self.at_most < 1 else "no change seen"


def read(path: Path) -> BenchRun:
    """A benchmark from its `bench.json`, or from the folder that holds it.

    Raises:
        RunFolderError: there is none, or it is damaged.
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
            f"{file} is no benchmark of cgverify, or a damaged one (at {where or 'its start'})."
        ) from error


def changes(before: BenchRun, now: BenchRun) -> list[ScenarioChange]:
    """What both measured, in the order of `now`.

    Raises:
        UsageError: another machine, other threads or flags, another model, or nothing in common.
    """
    for part in SAME:
        then, here = before.environment.get(part, {}), now.environment.get(part, {})
        for key in sorted({*then, *here}):
            if then.get(key) != here.get(key):
                raise UsageError(
                    f"The baseline is of another machine or setting ({key} {then.get(key)}, here {here.get(key)}): "
                    "measure one here, as times of two machines do not compare."
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
        raise UsageError("The baseline measured nothing of what was measured now: give the same options as then.")
    return found


def over(measured: Iterable[Measured], limit: float) -> list[str]:
    """Sentences about what is surely over `limit` times the reference: its whole interval is. Raising is over, too."""
    sentences = []
    for each in measured:
        where = f"{each.candidate}, {each.point.name}"
        if each.message:
            sentences.append(f"{where}: {each.message}")
        elif each.low is not None and each.low > limit:
            sentences.append(f"{where}: {each.low:.3f} to {each.high:.3f} times the reference, over {limit}")
    return sentences


def regressions(compared: Sequence[ScenarioChange], limit: float) -> list[str]:
    """Sentences about what surely takes over `limit` times what it took in the baseline, or no longer runs."""
    sentences = []
    for change in compared:
        where = f"{change.now.candidate}, {change.now.point.name}"
        if change.now.message and not change.before.message:
            sentences.append(f"{where}: {change.now.message}, where the baseline has a figure")
        elif change.at_least is not None and change.at_least > limit:
            sentences.append(
                f"{where}: ratio {change.now.ratio:.3f}, in the baseline {change.before.ratio:.3f}: "
                f"at least {change.at_least:.3f} times as much, over {limit}"
            )
    return sentences
