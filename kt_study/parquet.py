"""The parquet files of `kt-study collect`: the tables and their Arrow schemas, with units in the metadata.

The first column of every table is `study`. In result tables (`kt_study.schema`) the next is `job_id`, the number for
`kt-study status --job`, which also joins the tables. docs/schema.md is generated from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kt_study.job_kinds import JOB_KINDS
from kt_study.schema import COMPLEMENTARITY, RESULT_TABLES, Column, ResultTable

if TYPE_CHECKING:
    import pyarrow as pa

STUDY = Column("study", "text", "", "name of the study", nullable=False)
JOB_ID = Column("job_id", "int", "", "number of the job that made the row", nullable=False)

MODELS = ResultTable(
    name="models",
    meaning="One model of a study, with its accuracy on the validation split where it has been evaluated.",
    columns=(
        Column("dataset", "text", "", "name of the data set; empty before the evaluation"),
        Column("model", "text", "", "name of the model", nullable=False),
        Column("model_key", "text", "", "digest of architecture, weights and preprocessing", nullable=False),
        Column("family", "text", "", "cnn, transformer, mlp or hybrid", nullable=False),
        Column("params", "float", "millions", "parameters"),
        Column("gmacs", "float", "GMACs", "multiply-accumulates of one forward pass of one image"),
        Column("top1_published", "float", "%", "top-1 accuracy as timm publishes it"),
        Column("license", "text", "", "licence of the weights"),
        Column("timm", "text", "", "timm tag or architecture; empty for a factory"),
        Column("factory", "text", "", "module:callable; empty for a timm model"),
        Column("weights", "text", "", "digest of a local file, train:<job>, timm:<tag>, or random:<seed>"),
        Column("input_size", "text", "pixels", "channels x height x width"),
        Column("interpolation", "text", "", "resizing of the evaluation view"),
        Column("crop_pct", "float", "", "share of the resized image that the centre crop keeps"),
        Column("n", "int", "samples", "validation samples"),
        Column("acc", "float", "%", "top-1 accuracy on the validation split"),
        Column("loss", "float", "nats", "mean cross-entropy on the validation split"),
        Column("prediction_entropy", "float", "nats", "mean entropy of the predicted probabilities there"),
        Column("images_per_s", "float", "1/s", "throughput of the evaluation"),
        Column("device", "text", "", "cpu or the GPU's name"),
    ),
    key=("model_key", "dataset"),
)

PLANS = ResultTable(
    name="plans",
    meaning="One `kt-study plan` command of the study, in order of use; repeated commands appear once.",
    columns=(
        Column("command", "text", "", "the command line, with the options that add to the study file", nullable=False),
    ),
)

PAIRS = ResultTable(
    name="pairs",
    meaning="One planned pair, done or not: the sample that the study drew.",
    columns=(
        Column("role", "text", "", "complementarity or transfer", nullable=False),
        Column("teacher", "text", "", "name of the teacher; names joined by + for several"),
        Column("student", "text", "", "name of the student"),
        Column("teacher_key", "text", "", "digest of the teacher; joined by + for several"),
        Column("student_key", "text", "", "digest of the student"),
        Column("objective", "text", "", "transfer objective; empty for complementarity"),
        Column("multi_teacher", "text", "", "single, sequential, parallel or soup; empty for complementarity"),
        Column("reading", "text", "", "paper or authors; empty for complementarity"),
        Column("seed", "int", "", "seed of the pair's job"),
        Column("state", "text", "", "state of the pair's job when it was collected", nullable=False),
    ),
)

JOBS = ResultTable(
    name="jobs",
    meaning="One job, in its state when it was collected.",
    columns=(
        Column("kind", "text", "", ", ".join(JOB_KINDS), nullable=False),
        Column("digest", "text", "", "digest of kind and specification", nullable=False),
        Column("state", "text", "", "blocked, ready, running, done, failed or cancelled", nullable=False),
        Column("priority", "int", "", "higher first"),
        Column("estimate_s", "float", "seconds", "run time estimated by the plan"),
        Column("attempts", "int", "attempts", "attempts that count towards the limit"),
        Column("crashes", "int", "attempts", "attempts whose worker died"),
        Column("created_at", "float", "s since 1970", "when it was planned"),
        Column("changed_at", "float", "s since 1970", "when its state last changed"),
        Column("spec", "text", "", "its specification, as JSON"),
    ),
)

ATTEMPTS = ResultTable(
    name="attempts",
    meaning="One attempt of a job.",
    columns=(
        Column("attempt_id", "int", "", "number of the attempt", nullable=False),
        Column("kind", "text", "", "kind of the job", nullable=False),
        Column("worker", "text", "", "name of the worker process"),
        Column("host", "text", "", "node of the worker"),
        Column("device", "text", "", "cpu or the GPU's name"),
        Column("started_at", "float", "s since 1970", "when the job was claimed"),
        Column("ended_at", "float", "s since 1970", "when it ended; empty while it runs"),
        Column(
            "outcome",
            "text",
            "",
            "done, failed, retried, released, blocked (waits for an artefact), expired, undone (its artefact is made again) or "
            "cancelled; empty while it runs",
        ),
        Column("error", "text", "", "class name of the exception"),
        Column("message", "text", "", "the exception's one line"),
        Column("error_group", "text", "", "digest of the cause"),
    ),
    key=("attempt_id",),
)

ALL_PAIRS = ResultTable(
    name="all_pairs",
    meaning="Every ordered pair of the models of an `all_pairs` job: the columns of `complementarity`.",
    columns=COMPLEMENTARITY.columns,
    key=("teacher_key", "student_key"),
)

PARQUET_TABLES: dict[str, ResultTable] = {
    PLANS.name: PLANS,
    MODELS.name: MODELS,
    PAIRS.name: PAIRS,
    **{name: table for name, table in RESULT_TABLES.items() if name != ALL_PAIRS.name},
    ALL_PAIRS.name: ALL_PAIRS,
    JOBS.name: JOBS,
    ATTEMPTS.name: ATTEMPTS,
}
"""Every table that `collect` writes, in the order of docs/schema.md."""


def parquet_columns(name: str) -> tuple[Column, ...]:
    """The columns of one parquet table, `study` first. Raises KeyError for a table that is not written."""
    first = (STUDY,) if name in (PLANS.name, MODELS.name) else (STUDY, JOB_ID)
    return first + PARQUET_TABLES[name].columns


def arrow_schema(name: str) -> pa.Schema:
    """The Arrow schema of one table; each field has `unit`, `meaning` and `source` as metadata, the table `meaning`."""
    import pyarrow as pa

    types = {"int": pa.int64(), "float": pa.float64(), "text": pa.string(), "bool": pa.bool_()}
    fields = []
    for column in parquet_columns(name):
        notes = {"unit": column.unit, "meaning": column.meaning, "source": column.source}
        metadata = {key: note for key, note in notes.items() if note}
        fields.append(pa.field(column.name, types[column.type], column.nullable, metadata))
    return pa.schema(fields, {"meaning": PARQUET_TABLES[name].meaning})
