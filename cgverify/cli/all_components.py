"""`cgverify all-components`: every component of every layer of a checkpoint."""

from __future__ import annotations

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.runs.request import one_checkpoint


@command
def all_components(
    *,
    model: options.Model,
    weights: options.Weights = "auto",
    axes: options.AxisOptions,
    component: options.Components = None,
    scheduler: options.Scheduler = None,
    run: options.RunOptions,
) -> int:
    """Verify every component of every layer against Hugging Face, tensor by tensor.

    Examples:
      cgverify all-components --model codegen-nano
      cgverify all-components --model ./my-codegen --dtype float32,bfloat16
      cgverify all-components --model codegen-nano --bridge my_bridges:Mine -x

    Exit codes: 0 all tensors agree, 1 a parity failure, 2 bad usage, 3 something could not be run, 5 nothing was
    compared, 130 interrupted.
    """
    run.check()
    asked = axes.axes(component)
    request = one_checkpoint("all-components", model, weights, asked, axes.prompt, axes.tokens)
    execution = run.execution(scheduler=scheduler)

    from cgverify.cli.running import carry_out

    return carry_out(request, execution, run)
