"""The record of a recommendation, and its file for `kt-study recommend` and `kt-study plan`."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kt_study.errors import UsageError
from kt_study.files import read_text
from kt_study.records import Record

MEASURED, PREDICTED, MEAN = "measured", "predicted", "mean"
"""Where a teacher's delta comes from: its transfer was run; the forecast; the study's mean, which forecasts better."""


class AskedClass(Record, frozen=True, kw_only=True):
    """A class as the user named it. `n` is its validation samples, None where the data set's index is not here."""

    name: str
    index: int
    n: int | None = None


class ClassFlips(Record, frozen=True, kw_only=True):
    """Flips of one pair in one class, in samples."""

    name: str
    positive: int  # teacher right and student wrong
    negative: int  # teacher wrong and student right


class Teacher(Record, frozen=True, kw_only=True):
    """One line of a recommendation."""

    teacher: str
    teacher_key: str
    family: str
    params: float | None  # millions
    delta_acc: float  # acc(teacher) - acc(student), points
    rho_pos: float  # teacher right and student wrong, % of the validation samples
    rho_neg: float  # teacher wrong and student right, %
    flips_from: str  # pairs, all_pairs, transfers or predictions: what the flips were read from
    classes: list[ClassFlips]  # in the order in which they were asked for; empty without --classes
    class_gain: float | None  # samples of these classes expected to be newly right; None without --classes
    delta: float | None  # delta_transf, points
    delta_low: float | None  # 95 % interval; measured transfers only
    delta_high: float | None
    basis: str  # measured, predicted or mean; empty where nothing is known of delta
    gpu_hours: float | None  # None where no transfer can be run
    hours_from: str  # measured, student (mean of its transfers), or estimate
    job: str = ""  # digest of the job that measured it


class Forecast(Record, frozen=True, kw_only=True):
    """How delta was predicted, and how far off such predictions are. Errors are root mean squares, in points."""

    transfers: int  # fitted
    students: int  # among them
    held_out: str  # student or teacher: what the error was measured on without having seen it
    folds: int
    error: float
    error_of_mean: float  # of predicting the mean of the transfers that were seen
    weights: dict[str, float]  # points for each standard deviation of the feature
    intercept: float  # points

    @property
    def is_better(self) -> bool:
        """Whether it beats the mean where it was tested."""
        return self.error < self.error_of_mean


class Recommendation(Record, frozen=True, kw_only=True):
    """Teachers for one student, best first."""

    study: str
    dataset: str
    dataset_key: str
    student: str
    student_key: str
    objective: str
    classes: list[AskedClass]
    forecast: Forecast | None  # None where there are too few transfers
    candidates: int  # teachers of which enough is known to rank them
    teachers: list[Teacher]
    notes: list[str]


def read_recommendation(path: Path) -> Recommendation:
    """The recommendation in a file. Raises UsageError when there is none."""
    advice = f"`kt-study recommend --student NAME --out {path}` writes one"
    try:
        return msgspec.json.decode(read_text(path), type=Recommendation)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such recommendation; {advice}") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a recommendation ({error}); {advice}") from error


def require_ours(path: Path) -> None:
    """Refuse to write over a file that is no recommendation. Raises UsageError."""
    if not os.path.lexists(path):
        return
    try:
        read_recommendation(path)
    except UsageError:
        raise UsageError(
            f"{path} is there already and is no recommendation of kt-study's; give another --out"
        ) from None


def as_json(recommendation: Recommendation) -> bytes:
    """The recommendation as it is kept in a file: indented JSON, fields in a fixed order."""
    return msgspec.json.format(msgspec.json.encode(recommendation), indent=1) + b"\n"
