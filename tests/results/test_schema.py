"""docs/schema.md describes the files."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq

from docs.generate.schema_page import PAGE, schema_page
from kt_study.parquet import PARQUET_TABLES, arrow_schema
from kt_study.store import open_store
from orchestrator.results.collect import collect
from tests.results.synthetic import fill, make_world


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == schema_page(), "run python -m docs.generate.schema_page"


def test_the_page_lists_the_columns_of_real_files(tmp_path: Path, url: str) -> None:
    fill(open_store(url, create=True), make_world(models=4, n=100), students=1)
    collect(url, tmp_path / "results")
    sections = re.split(r"^## (\w+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    listed = {
        name: re.findall(r"^\| `(\w+)` \| (\w+) \|", text, flags=re.MULTILINE)
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }
    assert set(listed) == set(PARQUET_TABLES)
    types = {"int64": "int", "double": "float", "string": "text", "bool": "bool"}
    for name in PARQUET_TABLES:
        files = sorted((tmp_path / "results" / name).rglob("*.parquet"))
        schema = pq.read_schema(files[0]) if files else arrow_schema(name)
        assert [(field.name, types[str(field.type)]) for field in schema] == listed[name]


def test_every_number_with_a_unit_says_so_in_the_file() -> None:
    schema = arrow_schema("transfers")
    assert schema.field("delta_transf").metadata == {
        b"unit": b"points",
        b"meaning": b"acc_after - acc_before",
        b"source": b"Sec. 4.1",
    }
    assert schema.field("knowledge_gain").metadata[b"unit"] == b"%"
    for name in PARQUET_TABLES:
        for field in arrow_schema(name):
            assert field.metadata[b"meaning"], (name, field.name)
