"""`cgverify attention`: one attention, every stage and head."""

from __future__ import annotations

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.runs.request import one_checkpoint


@command
def attention(
    *,
    model: options.Model,
    weights: options.Weights = "auto",
    axes: options.AxisOptions,
    run: options.RunOptions,
) -> int:
    """Verify attention against Hugging Face, tap by tap and head by head.

    The table has a row for every tap, with the worst of the layers, cases and forwards that were verified, and then a
    row for every head. --layers 3 verifies one attention. Run folder, formats and cases are those of all-components.

    Examples:
      cgverify attention --model codegen-nano --layers 3
      cgverify attention --model codegen-nano --layers 3 --case decode
      cgverify attention --model codegen-nano --rotary-dim own,none,8

    Exit codes: 0 all tensors agree, 1 a parity failure, 2 bad usage, 3 something could not be run, 5 nothing was
    compared, 130 interrupted.
    """
    run.check()
    request = one_checkpoint("attention", model, weights, axes.axes(["attn"]), axes.prompt, axes.tokens)

    from cgverify.cli.running import carry_out

    return carry_out(request, run.execution(), run)
