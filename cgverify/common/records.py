"""What travels between the rooms and what is stored: Cell, Finding, CellResult, Checkpoint, Run.

Plain values only, no tensors. NaN and infinity survive a round trip through JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

SCHEMA_VERSION = 2
"""The version of the format of run folders."""


class Verdict(StrEnum):
    """What was found at a tap, from the best to the worst. Each finding carries the strongest that is true."""

    BITWISE = "bitwise"
    ULP = "ulp"
    BOUNDED = "bounded"
    UNSUPPORTED = "unsupported"
    ERROR = "error"
    MISSING = "missing"
    DIVERGED = "diverged"

    @property
    def fails(self) -> bool:
        """Whether this verdict is a parity failure."""
        return self in (Verdict.DIVERGED, Verdict.MISSING)

    @property
    def compares(self) -> bool:
        """Whether tensors were really compared."""
        return self not in (Verdict.UNSUPPORTED, Verdict.ERROR)

    @property
    def severity(self) -> int:
        return list(Verdict).index(self)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def model_dump_json(self, **options: Any) -> str:
        """Return the record as JSON. pydantic turns a Ctrl-C that meets it here into an error of its own."""
        try:
            return super().model_dump_json(**options)
        except PydanticSerializationError as error:
            if "KeyboardInterrupt" in str(error):
                raise KeyboardInterrupt from None
            raise


RotaryDim = int | Literal["none"]


class Prompt(Record):
    """A text as one sequence of token ids, for the cases `text` and `model`."""

    tokens: tuple[int, ...]
    origin: str
    """For people: where the tokens are from."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()[:16]


class Cell(Record):
    """One thing to verify. Its content is its identity."""

    model: str
    weights: str
    """Digest of the weights."""
    layer: int | None
    kind: str
    """The component without its layer: `attn.q`, `block`, `embed`."""
    candidate: str
    dtype: str
    device: str
    rotary_dim: RotaryDim
    case: str
    seed: int
    batch_size: int
    seq_len: int
    prompt: str = ""
    """Digest of the token ids; empty where inputs are random."""

    @property
    def component(self) -> str:
        """The component's name in the bridge: `embed`, `blocks.3`, `blocks.3.attn.q`."""
        if self.layer is None:
            return self.kind
        return f"blocks.{self.layer}" if self.kind == "block" else f"blocks.{self.layer}.{self.kind}"

    @cached_property
    def id(self) -> str:
        # A cell of random inputs is the same cell as before there were prompts.
        left_out = None if self.prompt else {"prompt"}
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]


class Finding(Record):
    """What was found at one tap of one cell. Errors are absolute; r is the greatest error over its bound."""

    step: str
    """The forward of the case: `prefill`, `token 1`, …, or `forward` where there is only one."""
    tap: str
    stage: str
    verdict: Verdict
    r: float | None = None
    """Candidate against the oracle, in units of the bound. None where the stage could not be computed."""
    reference_r: float | None = None
    max_abs: float | None = None
    """Greatest absolute difference between candidate and reference."""
    max_ulp: float | None = None
    candidate_error: float | None = None
    """Greatest absolute error against the oracle."""
    reference_error: float | None = None
    reference_digest: str = ""
    """Digest of Hugging Face's tensor, with its shape and dtype. Empty if it has no such tensor."""
    bits: float | None = None
    """Leading bits that can be trusted: −log2(candidate_error / greatest absolute value). Infinite where exact."""
    head_bits: float | None = None
    """The same of the worst head, where the tap has heads."""
    worst_head: int | None = None
    bits_by_head: tuple[float, ...] = ()
    """The same of every head, and `errors_by_head` the greatest error of each."""
    errors_by_head: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    at: str = ""
    """Where the worst element is: `head 3, position 5`."""
    message: str = ""
    cause: str = ""
    """The known cause whose computation the tap agrees with."""
    tensors: str = ""
    """The safetensors file in the run folder that holds what this finding is about; empty where none was kept."""


TIMES = ("seconds", "candidate_seconds", "reference_seconds", "judging_seconds")
"""The fields of a finished cell that differ whenever it is run again."""


class CellResult(Record):
    """A finished cell: one line of findings.jsonl."""

    cell: Cell
    findings: tuple[Finding, ...]
    silent_hooks: tuple[str, ...] = ()
    """Registered hooks that did not fire in this cell."""
    blame: str = ""
    """Why the cell failed, as one sentence without a full stop; empty where it held."""
    seconds: float
    candidate_seconds: float = 0.0
    """What its forwards took, tapped; `reference_seconds` is 0 where another candidate's cell had run them before."""
    reference_seconds: float = 0.0
    judging_seconds: float = 0.0
    """Its share of the oracle's and the judge's time, which cells that are in view together spend together."""

    @property
    def verdict(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), key=lambda verdict: verdict.severity)


class WholePlan(Record):
    """The plan that a run carries out, or of which it is a shard."""

    size: int
    """Cells."""
    digest: str

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> WholePlan:
        return cls(size=len(cells), digest=hashlib.sha256("".join(cell.id for cell in cells).encode()).hexdigest()[:16])

    def __str__(self) -> str:
        return f"a plan of {self.size} cells ({self.digest})"


IN_MEMORY = "in memory"
"""The name and origin of a checkpoint that is a model in memory, which no command can name."""


class Checkpoint(Record):
    """A checkpoint of a run, as it was found when the run was planned."""

    name: str
    """What cells call it."""
    asked: str
    """What the user typed: a name, a folder, a hub id."""
    weights: str
    """`auto`, `pretrained`, `random` or `random:SEED`."""
    origin: str
    """For people: where the weights are from."""
    digest: str
    """Of the weights; cells bear it. Empty where they cannot be had."""
    n_layers: int
    rotary_dim: int
    n_positions: int
    n_embd: int
    vocab_size: int
    problem: str = ""
    """Why its weights cannot be had: its cells are then errors."""
    prompt: Prompt | None = None
    """In its own tokens, for the cases that have one."""


class Run(Record):
    """What a run was: stored as run.json before the first cell."""

    schema_version: int = SCHEMA_VERSION
    created: str
    command: str
    model: str
    """What the run is called: its checkpoint, or the plan of a sweep."""
    weights_origin: str
    weights_digest: str
    """Of the one checkpoint, or of all digests together."""
    checkpoints: tuple[Checkpoint, ...] = ()
    plan: WholePlan | None = None
    """None for a pair in memory, whose run is not kept."""
    settings: dict[str, Any]
    environment: dict[str, Any]

    def checkpoint_of(self, cell: Cell) -> Checkpoint:
        """The checkpoint that a cell is of.

        Raises:
            LookupError: none of this run's.
        """
        for checkpoint in self.checkpoints:
            if (checkpoint.name, checkpoint.digest) == (cell.model, cell.weights):
                return checkpoint
        raise LookupError(f"{cell.model} with weights {cell.weights} is no checkpoint of this run")
