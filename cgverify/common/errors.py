"""The errors that a user can see. Each is one sentence that says what to do, with the exit code of its kind.

CgverifyError                 3  something could not be run
├── UsageError                2  the command or its arguments are wrong
│   ├── UnknownNameError         a name that is not known
│   ├── CheckpointMissingError   no checkpoint, or one of another architecture
│   ├── PairError                a bridge and a reference in memory that cannot be compared
│   ├── CandidateError           --bridge cannot be imported, or is not a bridge
│   ├── ConfigError              a plan that cannot be read, or that contains an error
│   └── RunFolderError           the output folder exists, cannot be written, or has another run
├── NothingToVerifyError      5  a plan without a cell
├── StorageError              3  the run folder cannot be written any longer: the disk is full
├── WeightsError              3  a checkpoint whose weights cannot be read or trusted
├── DeviceError               3  a device that this machine does not have
└── MemoryShortError          3  a run that does not fit into memory
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from cgverify.common.printable import printable


class CgverifyError(Exception):
    """The base of all errors. `str(error)` is the message for the user."""

    exit_code = 3

    def __str__(self) -> str:
        return printable(super().__str__())  # names and values of a folder may contain anything


class UsageError(CgverifyError):
    """The command or its arguments are wrong. Nothing was run."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not known. The message suggests the nearest known name."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        super().__init__(f"Unknown {kind} {given!r}: {suggestion(given, known)}")
        self.kind = kind


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return `did you mean 'decode'?`, or the known names if none is similar."""
    names = list(known)
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}."


class CheckpointMissingError(UsageError):
    pass


class PairError(UsageError):
    """A bridge and a reference in memory that cannot be compared. Nothing was verified."""


class CandidateError(UsageError):
    pass


class ConfigError(UsageError):
    pass


class RunFolderError(UsageError):
    pass


class NothingToVerifyError(CgverifyError):
    exit_code = 5


class StorageError(CgverifyError):
    pass


class WeightsError(CgverifyError):
    pass


class DeviceError(CgverifyError):
    pass


class MemoryShortError(CgverifyError):
    pass
