"""How the descriptions of two runs differ: for comparing runs, continuing one, and merging shards."""

from __future__ import annotations

from dataclasses import dataclass

from cgverify.common.records import Run

CANDIDATE_SOURCES = "candidate_sources"
"""The setting with a digest of each candidate's source file."""


@dataclass(frozen=True)
class Difference:
    """A version, flag or setting that differs between two runs. A value that one run lacks is `–`."""

    part: str
    """`versions`, `stages`, `numerics`, `machine`, `weights`, `source` (of a candidate) or `settings`."""
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name} {self.before}, now {self.after}"


def differences(before: Run, after: Run) -> list[Difference]:
    old, new = _described(before), _described(after)
    return [
        Difference(*key, before=str(old.get(key, "–")), after=str(new.get(key, "–")))
        for key in dict.fromkeys((*new, *old))
        if old.get(key, "–") != new.get(key, "–")
    ]


def weights_digests(run: Run) -> dict[str, str]:
    """Return the digest of each checkpoint's weights, by model and `--weights`; empty for one that is unavailable."""
    return {f"{one.asked} ({one.weights})": one.digest for one in run.checkpoints}


def _described(run: Run) -> dict[tuple[str, str], object]:
    stored = run.model_dump(mode="json")
    settings, environment = stored["settings"], stored["environment"]
    parts = {
        **{part: environment.get(part, {}) for part in ("versions", "stages", "numerics", "machine")},
        "weights": {"origin": run.weights_origin, "digest": run.weights_digest},
        "source": settings.pop(CANDIDATE_SOURCES, {}),
        "settings": settings,
    }
    return {(part, name): value for part, values in parts.items() for name, value in values.items()}
