"""`cgverify all-components`: every component of every layer of a checkpoint."""

from __future__ import annotations

import typer

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import FORMATS, KEPT, axes, known
from cgverify.plan.cells import DEFAULT_CASES


def all_components(
    context: typer.Context,
    model: options.Model,
    weights: options.Weights = "auto",
    bridge: options.Bridge = ["cgverify"],  # noqa: B006  typer wants the default as a list
    dtype: options.Dtype = ["float32"],  # noqa: B006
    device: options.Device = ["cpu"],  # noqa: B006
    rotary_dim: options.RotaryDims = None,
    case: options.Case = [*DEFAULT_CASES],  # noqa: B006
    layers: options.Layers = None,
    component: options.Components = None,
    seed: options.Seed = ["0"],  # noqa: B006
    batch_size: options.BatchSize = 2,
    seq_len: options.SeqLen = 8,
    prompt: options.PromptText = None,
    tokens: options.Tokens = None,
    threads: options.Threads = None,
    jobs: options.Jobs = 1,
    scheduler: options.Scheduler = None,
    allow: options.Allow = None,
    output: options.Output = None,
    keep_tensors: options.KeepTensors = "failed",
    resume: options.Resume = False,
    format: options.Format = "table",
    exitfirst: options.StopAtFailure = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Verify every component of every layer against Hugging Face, tensor by tensor.

    Exit codes: 0 all held, 1 a parity failure, 2 bad usage, 3 something could not be run, 5 nothing was compared,
    130 interrupted.
    """
    with exit_codes(verbose):
        asked = axes(
            bridge=bridge,
            dtype=dtype,
            device=device,
            rotary_dim=rotary_dim,
            case=case,
            layers=layers,
            component=component,
            seed=seed,
            batch_size=batch_size,
            seq_len=seq_len,
        )
        known("format", [format], FORMATS)
        known("keep-tensors", [keep_tensors], KEPT)
        shortcuts = tuple(options.shortcuts(allow))

        from cgverify.cli.verification import OutputOptions, run_one

        code = run_one(
            "all-components",
            model,
            weights,
            asked,
            OutputOptions(output, resume=resume, stop_at_failure=exitfirst),
            prompt=prompt,
            tokens=tokens,
            threads=threads,
            jobs=jobs,
            scheduler=scheduler,
            allow=shortcuts,
            keep_tensors=keep_tensors,
            format=format,
            quiet=quiet,
            verbose=verbose,
        )
    raise typer.Exit(code)
