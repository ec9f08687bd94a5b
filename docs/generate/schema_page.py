"""docs/schema.md, the parquet tables, generated from the schema: `python -m docs.generate.schema_page`."""

from __future__ import annotations

from pathlib import Path

from kt_study.files import write_text
from kt_study.parquet import PARQUET_TABLES, parquet_columns
from kt_study.schema import Column

PAGE = Path(__file__).resolve().parents[1] / "schema.md"

_HEAD = """# Result columns

`kt-study collect` writes one folder per table and study, `results/<table>/<study>/part-*.parquet`, compressed with zstd.
`study` is a column of every file, so a table, a study or a single file can be read in the same way:

<!-- run: digits -->
```python
import kt_study
kt_study.load("results/").transfers              # a typed pandas frame
```

<!-- run: digits -->
```python
import pandas, pyarrow.parquet, polars, duckdb
pandas.read_parquet("results/transfers")
pyarrow.parquet.read_table("results/transfers")
polars.read_parquet("results/transfers")
duckdb.sql("SELECT * FROM 'results/transfers/**/*.parquet'")
```

Units are also in the metadata of the Arrow fields: `schema.field("rho_pos").metadata[b"unit"]`. Accuracies, rho, gain
and loss are in percent of samples, deltas in points. In every row `rho_pos - rho_neg = delta_acc`,
`knowledge_gain - knowledge_loss = delta_transf`, and the change of `rho_neg` minus the change of `rho_pos` is
`delta_transf`. Columns are added over time and never renamed. "Paper" is arXiv 2310.17653.

Generated from `kt_study/parquet.py` and `kt_study/schema.py` by `python -m docs.generate.schema_page`; do not edit.
"""


def schema_page() -> str:
    """The whole page, Markdown."""
    return "\n".join([_HEAD, *(_table(name) for name in PARQUET_TABLES)])


def _table(name: str) -> str:
    rows = "\n".join(_row(column) for column in parquet_columns(name))
    head = "| column | type | unit | meaning | paper |\n| --- | --- | --- | --- | --- |"
    return f"## {name}\n\n{PARQUET_TABLES[name].meaning}\n\n{head}\n{rows}\n"


def _row(column: Column) -> str:
    cells = (f"`{column.name}`", column.type, column.unit, column.meaning, column.source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    write_text(PAGE, schema_page())
