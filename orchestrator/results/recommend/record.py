"""The record of a recommendation, and its file, which `kt-study recommend` writes and `kt-study plan` reads."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kt_study.errors import UsageError
from kt_study.files import read_text
from kt_study.records import Record

MEASURED, PREDICTED, MEAN = "measured", "predicted", "mean"
"""Sources of a teacher's delta: its own transfer; the forecast; the mean of the study, if that is the better forecast."""


class RequestedClass(Record, frozen=True, kw_only=True):
    """A class by the name that the user gave. `n`: its validation samples; None if unknown."""

    name: str
    index: int
    n: int | None = None


class ClassFlips(Record, frozen=True, kw_only=True):
    """Flips of one pair in one class, in samples."""

    name: str
    positive: int  # teacher right and student wrong
    negative: int  # teacher wrong and student right


class RankedTeacher(Record, frozen=True, kw_only=True):
    """One line of a recommendation."""

    teacher: str
    teacher_key: str
    family: str
    params: float | None  # millions
    delta_acc: float  # acc(teacher) - acc(student), points
    rho_pos: float  # teacher right and student wrong, % of the validation samples
    rho_neg: float  # teacher wrong and student right, %
    flips_from: str  # source of the flips: pairs, all_pairs, transfers or predictions
    classes: list[ClassFlips]  # in the order of --classes; empty without it
    class_gain: float | None  # samples of these classes expected to be newly right; None without --classes
    delta: float | None  # delta_transf, points
    delta_low: float | None  # 95 % interval; measured transfers only
    delta_high: float | None
    basis: str  # measured, predicted or mean; empty if delta is unknown
    gpu_hours: float | None  # None if no transfer can be run
    hours_from: str  # measured, student (mean of its transfers), or estimate
    job: str = ""  # digest of the job that measured it


class Forecast(Record, frozen=True, kw_only=True):
    """The forecast of delta and its error on held-out transfers: root mean squares, in points."""

    transfers: int  # fitted
    students: int  # among them
    held_out: str  # student or teacher: the role that was left out to measure the error
    folds: int
    error: float
    error_of_mean: float  # of predicting the mean of the fitted transfers
    weights: dict[str, float]  # points for each standard deviation of the feature
    intercept: float  # points

    @property
    def is_better(self) -> bool:
        """Whether its error is below that of the mean."""
        return self.error < self.error_of_mean


class Recommendation(Record, frozen=True, kw_only=True):
    """Teachers for one student, best first."""

    study: str
    dataset: str
    dataset_key: str
    student: str
    student_key: str
    objective: str
    classes: list[RequestedClass]
    forecast: Forecast | None  # None with too few transfers
    candidates: int  # teachers with enough data to be ranked
    teachers: list[RankedTeacher]
    notes: list[str]


def read_recommendation(path: Path) -> Recommendation:
    """The recommendation in a file. Raises UsageError if there is none."""
    advice = f"`kt-study recommend --student NAME --out {path}` writes one"
    try:
        return msgspec.json.decode(read_text(path), type=Recommendation)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such recommendation; {advice}") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a recommendation ({error}); {advice}") from error


def require_ours(path: Path) -> None:
    """Refuse to overwrite a file that is not a recommendation. Raises UsageError."""
    if not os.path.lexists(path):
        return
    try:
        read_recommendation(path)
    except UsageError:
        raise UsageError(f"{path} already exists and is not a recommendation of kt-study; give another --out") from None


def as_json(recommendation: Recommendation) -> bytes:
    """The content of a recommendation's file: indented JSON, fields in a fixed order."""
    return msgspec.json.format(msgspec.json.encode(recommendation), indent=1) + b"\n"
