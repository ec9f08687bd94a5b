"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TYPES = {"int": sa.BigInteger, "float": sa.Double, "text": sa.Text, "bool": sa.Boolean}

# The columns of the result tables as name:type, with ! where a value is required; written out, so that this migration
# stays what it was however kt_study.schema grows.
RESULTS = {
    "evaluations": (
        "dataset:text dataset_key:text model:text model_key:text split:text n:int acc:float loss:float "
        "seconds:float images_per_s:float device:text source:text "
    ),
    "complementarity": (
        "dataset:text dataset_key:text teacher:text student:text teacher_key:text student_key:text n:int "
        "acc_teacher:float acc_student:float delta_acc:float rho_pos:float rho_neg:float n_positive_flips:int "
        "n_negative_flips:int agreement:float error_overlap:float kappa:float entropy:float "
        "entropy_null:float top2_classes:float top5_classes:float top20_classes:float top50_classes:float "
        "top2_similarity:float top5_similarity:float top20_similarity:float top50_similarity:float "
        "similarity:text source:text "
    ),
    "class_flips": (
        "dataset:text teacher:text student:text class_index:int! class_name:text n:int positive_flips:int "
        "negative_flips:int "
    ),
    "transfers": (
        "dataset:text dataset_key:text student:text teacher:text student_key:text teacher_key:text "
        "objective:text epochs:int batch_size:int lr:float momentum:float weight_decay:float "
        "temperature:float kl_weight:float label_smoothing:float top_k:int warmup_epochs:int flips:text "
        "views:int augment:text crop:text batchnorm:text reading:text mcl_tau:float mcl_every:int "
        "precision:text channels_last:bool grad_clip:float micro_batch:int deterministic:bool compile:bool "
        "loader:text multi_teacher:text teacher_order:text seed:int n:int n_train:int acc_teacher:float "
        "acc_before:float acc_after:float delta_transf:float delta_transf_low:float delta_transf_high:float "
        "mcnemar_p:float knowledge_gain:float knowledge_loss:float rho_pos_before:float rho_pos_after:float "
        "rho_neg_before:float rho_neg_after:float transfer_rate_top2:float transfer_rate_top5:float "
        "transfer_rate_top20:float transfer_rate_top50:float transfer_rate_top100:float "
        "transfer_rate_strict_top2:float transfer_rate_strict_top5:float transfer_rate_strict_top20:float "
        "transfer_rate_strict_top50:float transfer_rate_strict_top100:float dp_pos_to_teacher:float "
        "dp_neg_to_teacher:float teacher_share:float diverged:bool diverged_step:int steps:int seconds:float "
        "images_per_s:float peak_memory:int device:text host:text versions:text predictions:text weights:text "
    ),
    "transfer_epochs": (
        "dataset:text student:text teacher:text objective:text stage:int epoch:int! loss:float acc:float "
        "delta_transf:float seconds:float "
    ),
    "trainings": ("dataset:text model:text model_key:text scope:text n:int epochs:int loss:float seconds:float "),
    "all_pairs": ("dataset:text n_models:int n_pairs:int file:text seconds:float "),
}
KEYS = {
    "class_flips": ("class_index",),
    "transfer_epochs": ("epoch",),
}


def upgrade() -> None:
    """From an empty database."""
    _create_studies_and_records()
    _create_jobs()
    _create_links()
    _create_attempts_and_workers()
    for name, columns in RESULTS.items():
        _create_results(name, columns.split())


def _create_studies_and_records() -> None:
    op.create_table(
        "studies",
        sa.Column("id", Identity, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    for name in ("models", "datasets"):
        op.create_table(
            name,
            sa.Column("key", sa.Text, primary_key=True),
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("record", sa.Text, nullable=False),
        )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", Identity, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("estimate_s", sa.Double, nullable=False, server_default="60"),
        sa.Column("teacher", sa.Text),
        sa.Column("student", sa.Text),
        sa.Column("needs_open", sa.Integer, nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("crashes", sa.Integer, nullable=False, server_default="0"),
        sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("not_before", sa.Double, nullable=False, server_default="0"),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.UniqueConstraint("digest", "kind"),
    )


def _create_links() -> None:
    for table, left, right in (("job_needs", "job_id", "needs_id"), ("study_jobs", "study_id", "job_id")):
        parent = "studies.id" if left == "study_id" else "jobs.id"
        op.create_table(
            table,
            sa.Column(left, Identity, sa.ForeignKey(parent), primary_key=True),
            sa.Column(right, Identity, sa.ForeignKey("jobs.id"), primary_key=True, index=True),
        )


def _create_attempts_and_workers() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", Identity, primary_key=True),
        sa.Column("job_id", Identity, nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("progress", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("error_group", sa.Text, index=True),
        sa.UniqueConstraint("job_id", "fence"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("slurm_job", sa.Text),
        sa.Column("log", sa.Text),
        sa.Column("device", sa.Text),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("beat_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
    )


def _create_results(name: str, columns: list[str]) -> None:
    def column(word: str) -> sa.Column[object]:
        label, kind = word.rstrip("!").split(":")
        return sa.Column(label, TYPES[kind](), nullable=not word.endswith("!"))

    op.create_table(
        name,
        sa.Column("id", Identity, primary_key=True),
        sa.Column("job_id", Identity, sa.ForeignKey("jobs.id"), nullable=False),
        *(column(word) for word in columns),
        sa.UniqueConstraint("job_id", *KEYS.get(name, ())),
    )
