"""Every error that a user can meet. Each is one sentence that says what to do, with the exit code of its kind.

CgverifyError                 3  something could not be run
├── UsageError                2  the command or its arguments are wrong
│   ├── UnknownNameError         a name that is none of the known ones
│   ├── CheckpointMissingError   no checkpoint there, or one of another architecture
│   ├── CandidateError           --bridge cannot be imported, or is not a bridge
│   ├── ConfigError              a plan's file that cannot be read, or does not say what a plan may say
│   └── RunFolderError           the output folder exists, cannot be written, or does not fit
├── NothingToVerifyError      5  a plan without a cell
├── StorageError              3  the run folder cannot be written any longer: the disk is full
├── WeightsError              3  a checkpoint whose weights cannot be read or trusted
├── DeviceError               3  a device that this machine does not have
└── MemoryShortError          3  a run that cannot fit into memory
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CgverifyError(Exception):
    """Base of all; str(error) is what the user reads."""

    exit_code = 3


class UsageError(CgverifyError):
    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is none of the known ones."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = list(known)
        close = get_close_matches(given, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}."
        super().__init__(f"Unknown {kind} {given!r}: {hint}")


class CheckpointMissingError(UsageError):
    pass


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
