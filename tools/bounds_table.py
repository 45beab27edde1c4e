"""Print the largest r of each stage in a run, as the tables of docs/bounds.md.

    cgverify all-components --model codegen-nano --case all --layers 0 --seed 0,1,2 --threads 1 \
        --dtype float64,float32,bfloat16,float16 --output runs/bounds
    python tools/bounds_table.py runs/bounds

r is the error in units of its bound, of the bridge's tensor or of Hugging Face's own, whichever is larger. Stages in
which a tensor must be copied, whose r is 0, are left out. The case `autocast` is a table of its own, by the dtype of
autocast.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

DTYPES = ["float32", "bfloat16", "float16", "float64"]


def tables(findings: pd.DataFrame) -> tuple[str, str]:
    """Return the tables of all cases but `autocast`, and of `autocast`, in Markdown."""
    is_autocast = findings["case"] == "autocast"
    autocast = findings[is_autocast]
    return table(findings[~is_autocast], DTYPES), table(
        autocast.assign(dtype=autocast["step"].str.partition(" ")[0]), DTYPES[1:3]
    )


def table(findings: pd.DataFrame, dtypes: list[str]) -> str:
    """Return the largest r by stage and dtype in Markdown, the stages in the order in which the run has them."""
    stage = findings["stage"].replace({f"project_{w}": "project_q/k/v" for w in "qkv"})
    largest = findings[["r", "reference_r"]].max(axis=1).groupby([stage, findings["dtype"]], sort=False).max()
    by_stage = largest.unstack().reindex(columns=dtypes)
    lines = [f"| stage | {' | '.join(dtypes)} |", "|---|" + "---|" * len(dtypes)]
    for name, row in by_stage[by_stage.max(axis=1) > 0].iterrows():
        lines.append(f"| `{name}` | {' | '.join(map(short, row))} |")
    return "\n".join(lines)


def short(r: float) -> str:
    """Write r with two decimals, or with three if it would be rounded to 1: `.06`, `.996`, `0`."""
    if pd.isna(r):
        return "–"
    if r < 0.005:
        return "0"
    return f"{r:.2f}".removeprefix("0") if r < 0.995 or r > 1 else f"{int(r * 1000) / 1000:.3f}".removeprefix("0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    findings = pd.read_csv(parser.parse_args().run / "findings.csv", low_memory=False)
    figures = findings[["r", "reference_r"]]
    print(*tables(findings), sep="\n\n")
    over = int((figures > 1).sum().sum())
    print(f"\n{int(figures.count().sum()):,} figures, {over} over 1, the largest {figures.max().max():.4f}")


if __name__ == "__main__":
    main()
