"""The options that commands share, and how their text becomes values. Lists repeat or take commas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError

from cgverify.cli import completion
from cgverify.cli.completion import Completion
from cgverify.common.devices import NO_DEVICE, device_name
from cgverify.common.errors import UnknownNameError, UsageError
from cgverify.common.numerics import SHORTCUTS
from cgverify.plan.axes import ATTENTIONS, DTYPES, Axes, describe_error
from cgverify.plan.cases import CASE_KINDS, DEFAULT_CASES, KINDS, SAMPLED
from cgverify.plan.cells import Shard
from cgverify.report.formats import FORMATS
from cgverify.runs.reading import require_new
from cgverify.runs.request import ExecutionOptions

KEEP_TENSORS = ("failed", "all", "none")
OPTION_OF_AXIS = {
    "candidates": "--bridge",
    "dtypes": "--dtype",
    "devices": "--device",
    "rotary_dims": "--rotary-dim",
    "attentions": "--attention",
    "cases": "--case",
    "layers": "--layers",
    "components": "--component",
    "seeds": "--seed",
    "batch_size": "--batch-size",
    "seq_len": "--seq-len",
}


WHAT, SETTINGS, INPUTS = "What to verify", "Under which settings", "With which inputs"
WORK, KEPT, SHOWN = "How the work is done", "What is kept", "What is printed"
"""The headings of `--help`."""


def option(
    name: str,
    help: str,
    *,
    shows: str | None = None,
    panel: str = WHAT,
    short: str | None = None,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    completes: Completion | None = None,
    **settings: Any,
) -> Any:
    """Declare the option `--NAME`, which the environment variable `CGVERIFY_NAME` sets as well.

    Args:
        shows: the word for its value in `--help`, by default its name. Flags have none.
        panel: the heading in `--help` under which the option appears.
        short: a second name, such as `-q`.
        at_least: the smallest number that is allowed.
        at_most: the largest number that is allowed.
        completes: what the shell offers for a value that is typed in part.
        settings: other arguments of `typer.Option`.
    """
    names = [f"--{name}", *([short] if short else [])]
    return typer.Option(
        *names,
        help=help,
        envvar="CGVERIFY_" + name.upper().replace("-", "_"),
        show_envvar=False,
        metavar=name.rpartition("-")[2].upper() if shows is None else shows,
        rich_help_panel=panel,
        autocompletion=completes,
        callback=_between(at_least, at_most) if math.isfinite(at_least) or math.isfinite(at_most) else None,
        **settings,
    )


def _between(least: float, most: float) -> Callable[[float | None], float | None]:
    def check(value: float | None) -> float | None:
        if value is not None and not value >= least:
            raise typer.BadParameter(f"{value:g} is less than {least:g}.")
        if value is not None and value > most:
            raise typer.BadParameter(f"{value:g} is more than {most:g}.")
        return value

    return check


def format_option(formats: Sequence[str], panel: str = SHOWN) -> Any:
    """Declare the option `--format`."""
    described = f"Format of the report on stdout: {', '.join(formats)}."
    return option("format", described, panel=panel, completes=completion.names(formats))


settings, inputs = partial(option, panel=SETTINGS), partial(option, panel=INPUTS)
work, kept, shown = partial(option, panel=WORK), partial(option, panel=KEPT), partial(option, panel=SHOWN)

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder or a baseline.", autocompletion=completion.run_folders)
]
Model = Annotated[
    str, option("model", "A name of `cgverify models`, a folder, or a hub id.", completes=completion.models)
]
Weights = Annotated[
    str,
    option(
        "weights",
        "auto uses the weights on this disk, or random ones. pretrained downloads what is missing. "
        "random[:SEED] draws them.",
        completes=completion.names(("auto", "pretrained", "random")),
    ),
]
Bridge = Annotated[
    list[str],
    option(
        "bridge",
        "cgverify, transformer_lens, or module:name of a class or function.",
        shows="BRIDGE,…",
        completes=completion.names(("cgverify", "transformer_lens")),
    ),
]
Layers = Annotated[
    str | None, option("layers", "Layer numbers and ranges, such as 0,5-7. All by default.", shows="LAYER,…")
]
Components = Annotated[
    list[str] | None,
    option(
        "component",
        "A glob over names such as blocks.3.attn.q or attn.*. All by default.",
        shows="COMPONENT,…",
        completes=completion.names(KINDS),
    ),
]
Dtype = Annotated[
    list[str], settings("dtype", f"{', '.join(DTYPES)}.", shows="DTYPE,…", completes=completion.names(DTYPES))
]
Device = Annotated[
    list[str],
    settings(
        "device",
        "cpu, or another device of torch: cuda, cuda:1, mps, xpu, ….",
        shows="DEVICE,…",
        completes=completion.names(("cpu", "cuda", "mps", "xpu")),
    ),
]
RotaryDims = Annotated[
    list[str] | None,
    settings(
        "rotary-dim", "Values to use instead of the checkpoint's own. none rotates the whole head.", shows="DIM,…"
    ),
]
Attention = Annotated[
    list[str],
    settings(
        "attention",
        f"Implementations of attention that Hugging Face's side runs: {', '.join(ATTENTIONS)}.",
        shows="NAME,…",
        completes=completion.names(ATTENTIONS),
    ),
]
Allow = Annotated[
    list[str] | None,
    settings(
        "allow",
        f"Shortcuts of matrix products to leave on, with wider bounds: {', '.join(SHORTCUTS)}.",
        shows="SHORTCUT,…",
        completes=completion.names(SHORTCUTS),
    ),
]
Case = Annotated[
    list[str],
    inputs(
        "case",
        f"{', '.join(CASE_KINDS)}; or all. If none is named, {', '.join(SAMPLED)} run on one layer.",
        shows="CASE,…",
        completes=completion.names((*CASE_KINDS, "all")),
    ),
]
Seed = Annotated[list[str], inputs("seed", "Seeds of the random inputs.", shows="SEED,…")]
BatchSize = Annotated[int, inputs("batch-size", "Sequences in each random input.", at_least=1)]
SeqLen = Annotated[int, inputs("seq-len", "Positions in each random input.", at_least=1)]
Prompt = Annotated[
    str | None,
    inputs("prompt", "Text for the cases text and model. By default a short piece of Python.", shows="TEXT"),
]
Tokens = Annotated[
    Path | None,
    inputs(
        "tokens",
        "A file of token ids to use instead of --prompt: separated by white space, or a JSON list.",
        shows="FILE",
    ),
]
Threads = Annotated[
    int | None,
    work("threads", "Number of torch threads. It is recorded in the run.", shows="N", at_least=1, at_most=1024),
]
Jobs = Annotated[
    str,
    work(
        "jobs",
        "Number of processes that share the work; auto is one for each processor, if the plan is large enough.",
        shows="N|auto",
    ),
]
Scheduler = Annotated[
    str | None,
    work("scheduler", "The address of a Dask scheduler whose workers do the work: tcp://host:8786.", shows="ADDRESS"),
]
Output = Annotated[
    Path | None,
    kept(
        "output",
        "The run folder. By default reports/MODEL-TIME.",
        shows="FOLDER",
        completes=completion.run_folders,
    ),
]
KeepTensors = Annotated[
    str,
    kept(
        "keep-tensors",
        "Findings whose tensors are kept in the run folder: failed, all, none.",
        shows="WHICH",
        completes=completion.names(KEEP_TENSORS),
    ),
]
Resume = Annotated[bool, kept("resume", "Continue the run in --output, or start it there.")]
Format = Annotated[str, format_option(FORMATS)]
ExitFirst = Annotated[bool, work("exitfirst", "Stop at the first failure.", short="-x")]
Quiet = Annotated[bool, shown("quiet", "Print no notices and no progress.", short="-q")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="-v shows warnings of libraries, -vv shows tracebacks.",
        rich_help_panel=SHOWN,
        show_default=False,
    ),
]


class AxisOptions(NamedTuple):
    """What to verify, but for the components."""

    bridge: Bridge = ["cgverify"]
    dtype: Dtype = ["float32"]
    device: Device = ["cpu"]
    rotary_dim: RotaryDims = None
    attention: Attention = ["eager"]
    case: Case = [*DEFAULT_CASES]
    layers: Layers = None
    seed: Seed = ["0"]
    batch_size: BatchSize = 2
    seq_len: SeqLen = 8
    prompt: Prompt = None
    tokens: Tokens = None

    def axes(self, component: Sequence[str] | None = None) -> Axes:
        """Return the axes that the options say.

        Raises:
            UsageError: an option names nothing, or a value is not allowed.
        """
        given = {
            "candidates": split(self.bridge),
            "dtypes": split(self.dtype),
            "devices": split(self.device),
            "attentions": split(self.attention),
            "cases": split(self.case),
            "seeds": [_number(text) for text in split(self.seed)],
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
        }
        if self.rotary_dim:
            given["rotary_dims"] = [_number(text.lower()) for text in split(self.rotary_dim)]
        if self.layers is not None:
            given["layers"] = split([self.layers])
        if component:
            given["components"] = split(component)
        try:
            return Axes.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            option = OPTION_OF_AXIS[str(first["loc"][0])]
            if first["type"] == "too_short":
                raise UsageError(f"{option} names nothing: give a value, or leave it out.") from None
            raise UsageError(describe_error(first, option)) from None


class RunOptions(NamedTuple):
    """How a run is carried out, kept and shown."""

    threads: Threads = None
    jobs: Jobs = "auto"
    allow: Allow = None
    output: Output = None
    keep_tensors: KeepTensors = "failed"
    resume: Resume = False
    format: Format = "table"
    exitfirst: ExitFirst = False
    quiet: Quiet = False
    verbose: Verbose = 0

    def check(self, *, rerun_failed: bool = False) -> None:
        """Refuse impossible options before torch is imported, which takes seconds.

        Raises:
            UsageError: a name is unknown, or --output is missing.
            RunFolderError: the folder in --output holds a run that is not to be continued.
        """
        known("format", [self.format], FORMATS)
        known("keep-tensors", [self.keep_tensors], KEEP_TENSORS)
        if self.allow:
            known("allow", split(self.allow), SHORTCUTS)
        continues = self.resume or rerun_failed
        if continues and self.output is None:
            option = "--resume" if self.resume else "--rerun-failed"
            raise UsageError(f"{option} continues the run in --output: give that folder.")
        if self.output is not None and not continues:
            require_new(self.output)

    def execution(self, *, scheduler: str | None = None, shard: Shard | None = None) -> ExecutionOptions:
        """Return how the run is carried out; see `ExecutionOptions` for what it raises."""
        return ExecutionOptions(
            threads=self.threads,
            jobs=number_of_jobs(self.jobs),
            scheduler=scheduler,
            allow=tuple(split(self.allow)),
            shard=shard,
            keep_tensors=self.keep_tensors,
            warnings=self.verbose > 0,
        )


def split(texts: Iterable[str] | None) -> list[str]:
    """Split texts at commas and drop repetitions: `["a,b", "c,a"]` becomes a, b and c."""
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def known(kind: str, given: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the given values of an option.

    Raises:
        UsageError: there are none.
        UnknownNameError: one of them is not in `names`.
    """
    names = list(names)
    if not given:
        raise UsageError(f"--{kind} names nothing: known are {', '.join(names)}.")
    for name in given:
        if name not in names:
            raise UnknownNameError(kind, name, names)
    return list(given)


def device_names(texts: Iterable[str]) -> list[str]:
    """Return the devices that --device names.

    Raises:
        UsageError: there are none, or torch does not know one of them.
    """
    names = []
    for text in split(texts):
        name = device_name(text)
        if name is None:
            raise UsageError(f"--device {text!r}: {NO_DEVICE}.")
        names.append(name)
    if not names:
        raise UsageError("--device names nothing: give a value, or leave it out.")
    return list(dict.fromkeys(names))


def number_of_jobs(text: str) -> int | None:
    """Return a number of processes; None for `auto`."""
    if text.lower() == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--jobs {text!r} is neither a number from 1 on nor auto.")
    return int(text)


def _number(text: str) -> int | str:
    """Return a number, or text that is not one as it is: `Axes` reports it."""
    try:
        return int(text)
    except ValueError:
        return text
