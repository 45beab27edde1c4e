"""`cgverify fuzz`: hunt for a sequence of calls in which a bridge does not compute what Hugging Face computes."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.cli.options import format_option, known, option, split
from cgverify.common.errors import CgverifyError, RunFolderError, UsageError
from cgverify.common.numerics import pin_numerics
from cgverify.common.process import hush_libraries
from cgverify.common.streams import stdout_to_stderr
from cgverify.plan.axes import DTYPES

FORMATS = ("table", "json")
EXAMPLE = "counterexample.json"

Minutes = Annotated[float, option("minutes", "How long to hunt. A failure is then shrunk for at most half a minute.")]
Seed = Annotated[int, option("seed", "The seed of the hunt.")]
Bridge = Annotated[str, option("bridge", "cgverify, transformer_lens, or module:name of a class or function.")]
Components = Annotated[list[str] | None, option("component", "attn, block, mlp, embed, …, or blocks.3.attn.")]
Output = Annotated[Path | None, option("output", f"The folder of {EXAMPLE}, whose example is tried first.")]
Format = Annotated[str, format_option(FORMATS)]


@command
def fuzz(
    *,
    model: options.Model = "codegen-nano",
    bridge: Bridge = "cgverify",
    minutes: Minutes = 5,
    component: Components = None,
    dtype: options.Dtype = ["float32"],
    seed: Seed = 0,
    output: Output = None,
    format: Format = "table",
    verbose: options.Verbose = 0,
) -> int:
    """Hunt for the smallest sequence of calls that a bridge fails.

    Exit codes: 0 none was found in the time, 1 one was found, 2 bad usage, 3 something could not be run, 130
    interrupted.

    Examples:
      cgverify fuzz --bridge my_bridge:MyAttention --minutes 2
      cgverify fuzz --bridge my_bridge:MyAttention --component attn
      cgverify fuzz --bridge my_bridge:MyAttention --output reports/fuzz
    """
    dtypes = known("dtype", split(dtype), DTYPES)
    known("format", [format], FORMATS)
    if importlib.util.find_spec("hypothesis") is None:
        raise UsageError("cgverify fuzz needs Hypothesis: pip install 'cgverify[fuzz]'.")
    if verbose == 0:
        hush_libraries()  # and no huge pages, each of which a forked process would copy whole

    from cgverify.checkpoint.resolve import resolve
    from cgverify.verification.fuzz.hunt import KINDS, Example, Hunt, can_fork, target

    if not can_fork():
        raise UsageError("cgverify fuzz needs a system that can fork a process, such as Linux.")
    pin_numerics(1)  # libraries that run several threads cannot be forked
    source = resolve(model)
    cells = [target(source, model, bridge, one, name, seed) for one in split(component) or KINDS for name in dtypes]
    kept = None if output is None else output / EXAMPLE
    first = None
    if kept is not None and kept.exists():
        try:
            first = Example.model_validate_json(kept.read_bytes()).of(source, model, bridge, seed)
        except ValueError:
            raise RunFolderError(f"{kept} is damaged: delete it, or give another --output.") from None
    hunt = Hunt(source, cells, 60 * minutes, seed)
    interrupted = False
    with stdout_to_stderr():
        try:
            hunt.run(first)
        except KeyboardInterrupt:
            interrupted = True
    covered = {
        "sequences": hunt.sequences,
        "calls": hunt.calls,
        "shapes": len(hunt.shapes),
        "modes": dict(sorted(hunt.modes.items())),
    }
    report: dict[str, object] = {"covered": covered, "counterexample": None}
    lines = []
    if hunt.found is not None:
        example, result = hunt.found
        sentence = result.blame or next(one.message for one in result.findings if one.verdict.fails)
        where = f"{example.cell.component} of {bridge} in {example.cell.dtype}"
        calls = "; ".join(f"call {number}: {call}" for number, call in enumerate(example.calls, start=1))
        snippet = _snippet(example, model, bridge)
        options_given = ["--component", example.cell.component, "--dtype", example.cell.dtype, "--seed", str(seed)]
        again = ["cgverify", "fuzz", "--model", model, "--bridge", bridge, *options_given]
        if output is not None:
            again += ["--output", str(output)]
            try:
                output.mkdir(parents=True, exist_ok=True)
                (output / EXAMPLE).write_text(example.model_dump_json(indent=2) + "\n", encoding="utf-8")
                (output / "counterexample.py").write_text(snippet, encoding="utf-8")
            except OSError as error:
                raise RunFolderError(f"Cannot write to {output}: {error.strerror}.") from error
        lines = [f"{where} fails. {calls}.", f"{sentence}.", "", snippet, shlex.join(again)]
        report["counterexample"] = {
            **example.model_dump(mode="json"),
            "sentence": sentence,
            "python": snippet,
            "command": shlex.join(again),
        }
    if format == "json":
        typer.echo(json.dumps(report))
    else:
        modes = ", ".join(f"{number} {mode}" for mode, number in sorted(hunt.modes.items()))
        lines.append(
            f"{hunt.sequences} sequences of {hunt.calls} calls, {len(hunt.shapes)} shapes ({modes}): "
            f"{'a failure' if hunt.found else 'no failure'}"
        )
        typer.echo("\n".join(lines))
    if interrupted:
        raise KeyboardInterrupt
    if not hunt.calls:
        raise CgverifyError("No call was made: give more --minutes.")
    return 1 if hunt.found else 0


def _snippet(example: object, model: str, bridge: str) -> str:
    """Return Python code that runs the example on a new instance."""
    from cgverify.verification.fuzz.hunt import Example

    assert isinstance(example, Example)
    cell = example.cell
    given = [call.model_dump(exclude_defaults=True).items() for call in example.calls]
    calls = "".join(f"    Call({', '.join(f'{name}={value!r}' for name, value in one)}),\n" for one in given)
    where = f"{model!r}, {bridge!r}, {cell.component!r}, {cell.dtype!r}"
    return (
        "from cgverify.verification.fuzz import Call, replay\n\n"
        f"calls = [\n{calls}]\n"
        f"result = replay({where}, calls, seed={cell.seed})\n"
        "print(result.verdict.value, result.blame)\n"
    )
