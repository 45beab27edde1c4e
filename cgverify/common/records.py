"""The records that rooms exchange and run folders store: Cell, Finding, CellResult, Checkpoint, Run.

They contain plain values and no tensors. NaN and infinity survive a round trip through JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError

SCHEMA_VERSION = 2
"""The version of the format of run folders."""


class Verdict(StrEnum):
    """The verdict on a tap, from the best to the worst. Each finding has the strongest verdict that is true."""

    BITWISE = "bitwise"
    ULP = "ulp"
    BOUNDED = "bounded"
    UNSUPPORTED = "unsupported"
    ERROR = "error"
    MISSING = "missing"
    SUSPECT = "suspect"
    DIVERGED = "diverged"

    @property
    def fails(self) -> bool:
        """Whether this verdict is a parity failure."""
        return self in (Verdict.DIVERGED, Verdict.SUSPECT, Verdict.MISSING)

    @property
    def compares(self) -> bool:
        """Whether tensors were compared."""
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

EAGER, SDPA = "eager", "sdpa"
"""The implementation of attention that computes scores and pattern one after the other."""

WeightsView = int | str
"""The weights of a checkpoint that are in view: a layer's number, `embed`, `ln_final`, `unembed`, or all in turn."""


class Prompt(Record):
    """A text as one sequence of token ids, for the cases `text` and `model`."""

    tokens: tuple[int, ...]
    origin: str
    """Where the tokens are from, for a reader."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()[:16]


class Cell(Record):
    """One thing to verify, identified by its content."""

    model: str
    weights: str
    """The digest of the weights."""
    layer: int | None
    kind: str
    """The component without its layer: `attn.q`, `block`, `embed`."""
    candidate: str
    dtype: str
    device: str
    rotary_dim: RotaryDim
    attention: str = EAGER
    """The implementation of attention that Hugging Face's side runs."""
    case: str
    seed: int
    batch_size: int
    seq_len: int
    prompt: str = ""
    """The digest of the token ids; empty if inputs are random."""

    @property
    def component(self) -> str:
        """The component's name in the bridge: `embed`, `blocks.3`, `blocks.3.attn.q`."""
        if self.layer is None:
            return self.kind
        return f"blocks.{self.layer}" if self.kind == "block" else f"blocks.{self.layer}.{self.kind}"

    @cached_property
    def id(self) -> str:
        # Older runs lack these fields: a cell with the default keeps the id that it has there.
        left_out = {name for name, default in (("prompt", ""), ("attention", EAGER)) if getattr(self, name) == default}
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]


SETTING = ("model", "candidate", "dtype", "device", "rotary_dim", "attention")
"""The fields of a cell that say what is verified, without its component and inputs."""


def setting_words(setting: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of fields of `SETTING` for a reader, some with their names. Eager attention is left out."""
    named = {"rotary_dim": "rotary_dim {}", "attention": "{} attention"}
    return tuple(
        named.get(field, "{}").format(value)
        for field, value in setting.items()
        if (field, value) != ("attention", EAGER)
    )


class Finding(Record):
    """The finding at one tap of one cell. Errors are absolute; r is the greatest error relative to its bound."""

    step: str
    """The forward of the case: `prefill`, `token 1`, …, or `forward` if there is only one."""
    tap: str
    stage: str
    verdict: Verdict
    r: float | None = None
    """The candidate's r against the oracle. None if the stage could not be computed."""
    reference_r: float | None = None
    max_abs: float | None = None
    """The greatest absolute difference between candidate and reference."""
    max_ulp: float | None = None
    candidate_error: float | None = None
    """The candidate's greatest absolute error against the oracle."""
    reference_error: float | None = None
    reference_digest: str = ""
    """Digest of Hugging Face's tensor, with its shape and dtype. Empty if it has no such tensor."""
    bits: float | None = None
    """The leading bits that are right: −log2(candidate_error / greatest absolute value). Infinite if exact."""
    head_bits: float | None = None
    """The bits of the worst head, if the tap has heads."""
    worst_head: int | None = None
    bits_by_head: tuple[float, ...] = ()
    """The bits of every head."""
    errors_by_head: tuple[float, ...] = ()
    """The greatest error of every head."""
    shape: tuple[int, ...] = ()
    at: str = ""
    """The place of the worst element: `head 3, position 5`."""
    message: str = ""
    cause: str = ""
    """The known cause that would give this tap's values."""
    tensors: str = ""
    """The safetensors file in the run folder with this finding's tensors; empty if none were kept."""


TIMES = ("seconds", "candidate_seconds", "reference_seconds", "judging_seconds")
"""The fields of a result that differ each time a cell is run."""


class CellResult(Record):
    """The result of a finished cell: one line of findings.jsonl."""

    cell: Cell
    findings: tuple[Finding, ...]
    silent_hooks: tuple[str, ...] = ()
    """The registered hooks that did not fire in this cell."""
    blame: str = ""
    """Why the cell failed, as a sentence without a full stop; empty if it did not fail."""
    seconds: float
    candidate_seconds: float = 0.0
    """The time of the candidate's forwards, with taps."""
    reference_seconds: float = 0.0
    """The time of the reference's forwards; 0 if they were run for another candidate's cell before."""
    judging_seconds: float = 0.0
    """The cell's share of the time that the oracle and the judge take for a batch."""

    @property
    def verdict(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), key=lambda verdict: verdict.severity)


class WholePlan(Record):
    """The plan that a run carries out, whole or one shard of it."""

    size: int
    """The number of cells."""
    digest: str

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> WholePlan:
        return cls(size=len(cells), digest=hashlib.sha256("".join(cell.id for cell in cells).encode()).hexdigest()[:16])

    def __str__(self) -> str:
        return f"a plan of {self.size} cells ({self.digest})"


IN_MEMORY = "in memory"
"""The name and origin of a model in memory, which no command can name."""


class Checkpoint(Record):
    """A checkpoint, as it was found when a run was planned."""

    name: str
    """Its name in cells."""
    asked: str
    """What the user typed: a name, a folder, or a hub id."""
    weights: str
    """`auto`, `pretrained`, `random` or `random:SEED`."""
    origin: str
    """Where the weights are from, for a reader."""
    digest: str
    """The digest of the weights, which is in its cells. Empty if they are unavailable."""
    n_layers: int
    """0 if the shape is unknown."""
    rotary_dim: int
    n_positions: int
    n_embd: int
    vocab_size: int
    n_head: int = 0
    """0 in runs of older versions, which did not record it."""
    n_inner: int | None = None
    """The width of the MLP. None is four times n_embd."""
    problem: str = ""
    """Why its weights are unavailable: its cells are then errors."""
    prompt: Prompt | None = None
    """The prompt in its own tokens, if there is a case that needs one."""


class Run(Record):
    """The description of a run, which is stored as run.json before the first cell."""

    schema_version: int = SCHEMA_VERSION
    created: str
    command: str
    model: str
    """The name of the run: its checkpoint, or the plan of a sweep."""
    weights_origin: str
    weights_digest: str
    """The digest of the one checkpoint, or a digest of all their digests."""
    checkpoints: tuple[Checkpoint, ...] = ()
    plan: WholePlan | None = None
    """None for a pair in memory, whose run is not stored."""
    settings: dict[str, Any]
    environment: dict[str, Any]

    def checkpoint_of(self, cell: Cell) -> Checkpoint:
        """Return the checkpoint of a cell.

        Raises:
            LookupError: it is not a checkpoint of this run.
        """
        for checkpoint in self.checkpoints:
            if (checkpoint.name, checkpoint.digest) == (cell.model, cell.weights):
                return checkpoint
        raise LookupError(f"{cell.model} with weights {cell.weights} is not a checkpoint of this run")
