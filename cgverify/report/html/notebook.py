"""A run, a comparison or a benchmark as HTML for the output of a notebook's cell: no script, and a style of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cgverify.common.printable import printable
from cgverify.common.records import CellResult, Run
from cgverify.report.html.heat_map import heat_map, values_by_axis
from cgverify.report.html.page import headline
from cgverify.report.html.run_charts import ChartWithTable
from cgverify.report.html.templating import render_template
from cgverify.report.outcome import failures, verdict_line
from cgverify.report.sections import Section

MOST_FAILURES = 10


def run_output(run: Run, results: Sequence[CellResult], planned: int) -> str:
    """Return the outcome, the settings, a sentence for each fault, and the heat map of `run_page`.

    Args:
        results: in report order.
        planned: the number of cells of the plan.
    """
    found = failures(results)
    setting = [f"{name.replace('_', ' ')} {', '.join(values)}" for name, values in values_by_axis(run, results).items()]
    output = render_template(
        "notebook_run.html.j2",
        **headline(results, planned, found),
        setting=" · ".join([run.model, *setting[1:], run.weights_origin]),
        summary=verdict_line(results),
        failures=[(failure, failure.command(run)) for failure in found[:MOST_FAILURES]],
        more_failures=max(0, len(found) - MOST_FAILURES),
        map=heat_map(run, results),
    )
    return printable(output)


def sections_output(sections: Iterable[Section], charts: Iterable[ChartWithTable] = ()) -> str:
    """Return the sections of a report, and charts below the first of them."""
    return printable(render_template("notebook_sections.html.j2", sections=list(sections), charts=list(charts)))
