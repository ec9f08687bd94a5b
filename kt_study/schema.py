"""The result rows: name, type, unit and meaning of every column, stated once.

The database's result tables (`kt_study.tables`), the parquet files of `collect` and docs/schema.md derive from it.
Column names are a contract with users' notebooks: add, never rename.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kt_study.settings import SETTINGS, Setting

Type = Literal["int", "float", "text", "bool"]

TOP_PERCENTS = (2, 5, 20, 50)
"""Shares of the positive flips, %, whose smallest sets of classes are measured (Figures 2 and 5a)."""

RATE_PERCENTS = (*TOP_PERCENTS, 100)
"""Those for which a transfer rate is measured."""


class Column(msgspec.Struct, frozen=True):
    """One column. `unit` is %, points, nats, seconds, bytes, ... or empty. `source` cites the definition."""

    name: str
    type: Type
    unit: str
    meaning: str
    source: str = ""
    nullable: bool = True


class ResultTable(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of result row. `key` names the columns that, with the job, make a row unique."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()


def _text(name: str, meaning: str, source: str = "") -> Column:
    return Column(name, "text", "", meaning, source)


def _count(name: str, meaning: str, unit: str = "samples", source: str = "") -> Column:
    return Column(name, "int", unit, meaning, source)


def _real(name: str, unit: str, meaning: str, source: str = "") -> Column:
    return Column(name, "float", unit, meaning, source)


EVALUATIONS = ResultTable(
    name="evaluations",
    meaning="One model forwarded over one split with its own preprocessing.",
    columns=(
        _text("dataset", "name of the data set"),
        _text("dataset_key", "digest of the data set"),
        _text("model", "name of the model"),
        _text("model_key", "digest of architecture, weights and preprocessing"),
        _text("split", "train or val"),
        _real("params", "millions", "parameters of the model as it was built; empty for predictions made elsewhere"),
        _count("n", "samples forwarded"),
        _real("acc", "%", "top-1 accuracy; empty without labels"),
        _real("loss", "nats", "mean cross-entropy; empty without labels"),
        _real("prediction_entropy", "nats", "mean entropy of the predicted probabilities; needs no labels"),
        _real("seconds", "seconds", "wall time of the pass"),
        _real("images_per_s", "1/s", "throughput of the pass"),
        _text("device", "cpu or the GPU's name"),
        _text("source", "forwarded here, or predictions made elsewhere"),
    ),
)

COMPLEMENTARITY = ResultTable(
    name="complementarity",
    meaning="What the teacher knows that the student does not, for one ordered pair (Section 3).",
    columns=(
        _text("dataset", "name of the data set"),
        _text("dataset_key", "digest of the data set"),
        _text("teacher", "name of the teacher"),
        _text("student", "name of the student"),
        _text("teacher_key", "digest of the teacher"),
        _text("student_key", "digest of the student"),
        _count("n", "validation samples"),
        _count("n_classes", "classes of the data set, those without samples included; empty without labels", "classes"),
        _real("acc_teacher", "%", "top-1 accuracy of the teacher"),
        _real("acc_student", "%", "top-1 accuracy of the student"),
        _real("delta_acc", "points", "acc_teacher - acc_student"),
        _real("rho_pos", "%", "teacher right and student wrong", "Eq. 1"),
        _real("rho_neg", "%", "teacher wrong and student right", "Sec. 3"),
        _count("n_positive_flips", "samples that the teacher gets right and the student wrong"),
        _count("n_negative_flips", "samples that the teacher gets wrong and the student right"),
        _real("agreement", "%", "samples on which both predict the same class"),
        _real("error_overlap", "%", "samples both get wrong, of those at least one gets wrong"),
        _real("kappa", "", "Cohen's kappa of being right: error consistency", "Geirhos et al. 2020, Eq. 3"),
        _real("entropy", "nats", "entropy of the positive flips over classes", "Fig. 1b"),
        _real("entropy_null", "nats", "expected entropy of a random subset of the student's errors of the same size"),
        *(
            _real(f"top{x}_classes", "%", f"share of classes that holds the top {x} % of positive flips", "Fig. 2a")
            for x in TOP_PERCENTS
        ),
        *(
            _real(
                f"top{x}_similarity",
                "%",
                "similarity of those classes above the average over all classes",
                "Fig. 2b",
            )
            for x in TOP_PERCENTS
        ),
        _text("similarity", "source of the class similarities"),
        _text("source", "forwarded here, or predictions made elsewhere"),
    ),
)

CLASS_FLIPS = ResultTable(
    name="class_flips",
    meaning="Flips of one ordered pair in one class; classes without any flip have no row.",
    columns=(
        _text("dataset", "name of the data set"),
        _text("teacher", "name of the teacher"),
        _text("student", "name of the student"),
        Column("class_index", "int", "", "index of the class", nullable=False),
        _text("class_name", "folder or label of the class"),
        _count("n", "validation samples of the class"),
        _count("positive_flips", "teacher right and student wrong"),
        _count("negative_flips", "teacher wrong and student right"),
    ),
    key=("class_index",),
)

_TYPES: dict[type, Type] = {int: "int", float: "float", bool: "bool"}


def _setting(setting: Setting) -> Column:
    choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
    meaning = setting.description[0].lower() + setting.description[1:].removesuffix(".") + choices
    return Column(setting.name, _TYPES.get(setting.bare_type, "text"), setting.unit, meaning, setting.source)


TRANSFERS = ResultTable(
    name="transfers",
    meaning="One transfer of knowledge into one student (Sections 4 and 5).",
    columns=(
        _text("dataset", "name of the data set"),
        _text("dataset_key", "digest of the data set"),
        _text("student", "name of the student"),
        _text("teacher", "name of the teacher; names joined by + for several"),
        _text("student_key", "digest of the student"),
        _text("teacher_key", "digest of the teacher; joined by + for several"),
        _text("objective", "transfer objective"),
        *map(_setting, SETTINGS.values()),
        _count("seed", "seed of order, views and dropout", ""),
        _real("lr_effective", "", "learning rate that SGD got: lr, scaled by batch_size / 256 under reading = authors"),
        _count("stage", "stage of a sequential transfer, from 0; 0 for all others", ""),
        _count("n", "validation samples"),
        _count("n_train", "samples of the transfer set"),
        _real("acc_teacher", "%", "top-1 accuracy of the (best) teacher"),
        _real("acc_before", "%", "top-1 accuracy of the student before"),
        _real("acc_after", "%", "top-1 accuracy of the student after the last epoch"),
        _real("delta_transf", "points", "acc_after - acc_before", "Sec. 4.1"),
        _real("delta_stage", "points", "acc_after - accuracy before this stage of a sequential transfer"),
        _real("delta_transf_low", "points", "lower end of the paired-bootstrap 95 % interval"),
        _real("delta_transf_high", "points", "upper end of the paired-bootstrap 95 % interval"),
        _real("mcnemar_p", "", "two-sided p of McNemar's test of before against after"),
        _real("knowledge_gain", "%", "samples newly right", "Sec. 4.1"),
        _real("knowledge_loss", "%", "samples newly wrong", "Sec. 4.1"),
        _real("changed", "%", "samples whose predicted class changed, right or wrong; needs no labels"),
        _real("agreement_before", "%", "samples on which student and (best) teacher agree, before; needs no labels"),
        _real("agreement_after", "%", "samples on which student and (best) teacher agree, after; needs no labels"),
        _real("rho_pos_before", "%", "teacher right and student wrong, before"),
        _real("rho_pos_after", "%", "teacher right and student wrong, after"),
        _real("rho_neg_before", "%", "teacher wrong and student right, before"),
        _real("rho_neg_after", "%", "teacher wrong and student right, after"),
        *(
            _real(
                f"transfer_rate_top{x}",
                "%",
                f"flips gained on the classes that hold the top {x} % of positive flips, of the positive flips there",
                "Fig. 5a",
            )
            for x in RATE_PERCENTS
        ),
        *(
            _real(
                f"transfer_rate_strict_top{x}",
                "%",
                f"the same images gained, of the positive flips in the classes that hold the top {x} %",
            )
            for x in RATE_PERCENTS
        ),
        _real("dp_pos_to_teacher", "%", "positive flips that the partition's rule gives to the teacher", "Sec. 5.1"),
        _real("dp_neg_to_teacher", "%", "negative flips that the partition's rule gives to the teacher", "Sec. 5.1"),
        _real("teacher_share", "%", "training samples, over all views, learned from the teacher"),
        Column("diverged", "bool", "", "the loss stopped being finite; accuracies are of the last finite weights"),
        _count("diverged_step", "step at which the loss stopped being finite, from 0", "steps"),
        _count("diverged_batch", "batch of its epoch at which that was, from 0", ""),
        _count("steps", "optimiser steps taken", "steps"),
        _real("seconds", "seconds", "wall time of the transfer, all attempts"),
        _real("images_per_s", "1/s", "training throughput"),
        _count("micro_batch_used", "samples a forward at the end: smaller than micro_batch when memory ran out"),
        _count("peak_memory", "peak memory of the device (GPU) or the process (CPU)", "bytes"),
        _text("device", "cpu or the GPU's name"),
        _text("host", "name of the node"),
        _count("threads", "CPU threads used", "threads"),
        _text("versions", "python, torch, timm and kt-study"),
        _text("predictions", "file of the student's predictions after, relative to the study folder"),
        _text("weights", "file of the transferred student, relative to the study folder, if kept"),
    ),
)

TRANSFER_EPOCHS = ResultTable(
    name="transfer_epochs",
    meaning="The training curve of one transfer, one row per epoch.",
    columns=(
        _text("dataset", "name of the data set"),
        _text("student", "name of the student"),
        _text("teacher", "name of the teacher; names joined by + for several"),
        _text("objective", "transfer objective"),
        _count("stage", "stage of a sequential transfer, from 0", ""),
        Column("epoch", "int", "epochs", "epochs done", nullable=False),
        _real("loss", "nats", "mean training loss of the epoch"),
        _real("acc", "%", "accuracy after the epoch; empty where it was not evaluated"),
        _real("delta_transf", "points", "acc - acc_before"),
        _real("seconds", "seconds", "wall time since the start of the attempt"),
    ),
    key=("epoch",),
)

TRAININGS = ResultTable(
    name="trainings",
    meaning="One model trained for a data set, whole or its last layer.",
    columns=(
        _text("dataset", "name of the data set"),
        _text("model", "name of the model"),
        _text("model_key", "digest of the model"),
        _text("scope", "all or head"),
        _count("n", "training samples used"),
        _count("epochs", "passes over them", "epochs"),
        _real("loss", "nats", "mean loss of the last epoch"),
        _real("seconds", "seconds", "wall time"),
    ),
)

ALL_PAIRS = ResultTable(
    name="all_pairs",
    meaning="A file of every ordered pair of a set of models.",
    columns=(
        _text("dataset", "name of the data set"),
        _count("n_classes", "classes of the data set, those without samples included; empty without labels", "classes"),
        _count("n_models", "models", "models"),
        _count("n_pairs", "ordered pairs in the file", "pairs"),
        _text("file", "parquet file, relative to the study folder"),
        _real("seconds", "seconds", "wall time"),
    ),
)

RESULT_TABLES = {
    table.name: table
    for table in (EVALUATIONS, COMPLEMENTARITY, CLASS_FLIPS, TRANSFERS, TRANSFER_EPOCHS, TRAININGS, ALL_PAIRS)
}
