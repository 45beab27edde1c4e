"""The options that commands share, and what their text means. Lists repeat or take commas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cgverify.common.environment import SHORTCUTS
from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.records import RotaryDim
from cgverify.plan.cells import CASE_KINDS, DEVICES, DTYPES, Axes
from cgverify.report.formats import FORMATS as FORMATS

KEPT = ("failed", "all", "none")
MOST_LAYERS = 10_000

_AXES = "What to verify"
_RUN = "How to run"

Model = Annotated[
    str, typer.Option(help="A name of `cgverify models`, a folder, or a hub id.", envvar="CGVERIFY_MODEL")
]
Weights = Annotated[
    str,
    typer.Option(
        help="auto: what is on this disk, else random. pretrained: download what is missing. random[:SEED].",
        envvar="CGVERIFY_WEIGHTS",
    ),
]
Bridge = Annotated[
    list[str],
    typer.Option(
        help="cgverify, transformer_lens, or module:name of a class or function.",
        envvar="CGVERIFY_BRIDGE",
        rich_help_panel=_AXES,
    ),
]
Dtype = Annotated[list[str], typer.Option(help=", ".join(DTYPES), envvar="CGVERIFY_DTYPE", rich_help_panel=_AXES)]
Device = Annotated[list[str], typer.Option(help=", ".join(DEVICES), envvar="CGVERIFY_DEVICE", rich_help_panel=_AXES)]
RotaryDims = Annotated[
    list[str] | None,
    typer.Option(
        help="Other values than the checkpoint's own; none rotates the whole head.",
        envvar="CGVERIFY_ROTARY_DIM",
        rich_help_panel=_AXES,
    ),
]
Case = Annotated[
    list[str], typer.Option(help=f"{', '.join(CASE_KINDS)}; or all.", envvar="CGVERIFY_CASE", rich_help_panel=_AXES)
]
Layers = Annotated[
    str | None, typer.Option(help="0,5-7; all by default.", envvar="CGVERIFY_LAYERS", rich_help_panel=_AXES)
]
Components = Annotated[
    list[str] | None,
    typer.Option(
        help="Glob over blocks.3.attn.q or attn.*; all by default.",
        envvar="CGVERIFY_COMPONENT",
        rich_help_panel=_AXES,
    ),
]
Seed = Annotated[list[str], typer.Option(help="Of the probes.", envvar="CGVERIFY_SEED", rich_help_panel=_AXES)]
BatchSize = Annotated[int, typer.Option(min=1, envvar="CGVERIFY_BATCH_SIZE", rich_help_panel=_AXES)]
SeqLen = Annotated[int, typer.Option(min=1, envvar="CGVERIFY_SEQ_LEN", rich_help_panel=_AXES)]
PromptText = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="Text for the cases text and model; by default a short piece of Python.",
        envvar="CGVERIFY_PROMPT",
        rich_help_panel=_AXES,
    ),
]
Tokens = Annotated[
    Path | None,
    typer.Option(
        help="Instead of --prompt: a file of token ids, with white space between them or as a JSON list.",
        envvar="CGVERIFY_TOKENS",
        rich_help_panel=_AXES,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Of torch; recorded.", envvar="CGVERIFY_THREADS", rich_help_panel=_RUN),
]
Jobs = Annotated[
    int, typer.Option(min=1, help="Processes that share the work.", envvar="CGVERIFY_JOBS", rich_help_panel=_RUN)
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Of a Dask cluster whose workers do the work: tcp://host:8786.",
        envvar="CGVERIFY_SCHEDULER",
        rich_help_panel=_RUN,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Shortcuts of products to leave on, with wider bounds: {', '.join(SHORTCUTS)}. None by default.",
        envvar="CGVERIFY_ALLOW",
        rich_help_panel=_RUN,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Run folder; by default reports/MODEL-TIME.", envvar="CGVERIFY_OUTPUT", rich_help_panel=_RUN),
]
KeepTensors = Annotated[
    str,
    typer.Option(
        help="Of which findings tensors are kept in the run folder: failed, all, none.",
        envvar="CGVERIFY_KEEP_TENSORS",
        rich_help_panel=_RUN,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --output, or begin it there.",
        envvar="CGVERIFY_RESUME",
        rich_help_panel=_RUN,
    ),
]
Format = Annotated[
    str, typer.Option(help=f"On stdout: {', '.join(FORMATS)}.", envvar="CGVERIFY_FORMAT", rich_help_panel=_RUN)
]
StopAtFailure = Annotated[
    bool,
    typer.Option(
        "--exitfirst", "-x", help="Stop at the first failure.", envvar="CGVERIFY_EXITFIRST", rich_help_panel=_RUN
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notices, no progress.", envvar="CGVERIFY_QUIET", rich_help_panel=_RUN)
]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, help="-v warnings of libraries, -vv tracebacks.", rich_help_panel=_RUN),
]


def axes(
    *,
    bridge: Sequence[str],
    dtype: Sequence[str],
    device: Sequence[str],
    rotary_dim: Sequence[str] | None,
    case: Sequence[str],
    layers: str | None,
    component: Sequence[str] | None,
    seed: Sequence[str],
    batch_size: int,
    seq_len: int,
) -> Axes:
    """What the options ask for.

    Raises:
        UsageError: a name that is not known, or text that is no number.
    """
    cases = split(case)
    return Axes(
        candidates=split(bridge),
        dtypes=known("dtype", split(dtype), DTYPES),
        devices=known("device", split(device), DEVICES),
        rotary_dims=[_rotary_dim(text) for text in split(rotary_dim or ())],
        cases=list(CASE_KINDS) if cases == ["all"] else known("case", cases, CASE_KINDS),
        layers=None if layers is None else _layers(layers),
        components=split(component or ()),
        seeds=[_number("--seed", text, below=1 << 63) for text in split(seed)],
        batch_size=batch_size,
        seq_len=seq_len,
    )


def split(texts: Iterable[str]) -> list[str]:
    """`["a,b", "c"]` is a, b and c; each once."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def known(kind: str, given: Sequence[str], names: Iterable[str]) -> list[str]:
    """The given names, or UnknownNameError for the first that is none of `names`."""
    names = list(names)
    if not given:
        raise UsageError(f"--{kind} names nothing: known are {', '.join(names)}.")
    for name in given:
        if name not in names:
            raise UnknownNameError(kind, name, names)
    return list(given)


def shortcuts(allow: Sequence[str] | None) -> list[str]:
    """The shortcuts of products that `--allow` names."""
    return known("allow", split(allow), SHORTCUTS) if allow else []


def _rotary_dim(text: str) -> RotaryDim:
    return "none" if text.lower() == "none" else _number("--rotary-dim", text)


def _layers(text: str) -> list[int]:
    """`0,5-7` is 0, 5, 6 and 7."""
    layers: list[int] = []
    for part in split([text]):
        first, dash, last = part.partition("-")
        if dash and not first:
            raise UsageError(f"--layers {part!r} is no layer: they count from 0.")
        start = _number("--layers", first, below=MOST_LAYERS)
        layers += range(start, _number("--layers", last, below=MOST_LAYERS) + 1) if dash else [start]
    if not layers:
        raise UsageError(f"--layers {text!r} names no layer: write 3, or 0,5-7.")
    return sorted(set(layers))


def _number(option: str, text: str, below: int = 1 << 31) -> int:
    if not text.isdecimal():
        raise UsageError(f"{option} {text!r} is not a whole number.")
    if int(text) >= below:
        raise UsageError(f"{option} {text} is too large: give less than {below}.")
    return int(text)
