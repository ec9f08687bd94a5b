"""Ranks teachers by their flips, measured and predicted transfers, and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from kt_study.records import ModelRecord
from orchestrator.results.recommend.evaluated import EvaluatedStudent
from orchestrator.results.recommend.forecast import LEAST_TRANSFERS, Forecaster, PairFacts, make_forecaster
from orchestrator.results.recommend.hours import Hours
from orchestrator.results.recommend.knowledge import Knowledge
from orchestrator.results.recommend.measured import Measured
from orchestrator.results.recommend.record import (
    MEAN,
    MEASURED,
    PREDICTED,
    ClassFlips,
    Forecast,
    RankedTeacher,
    RequestedClass,
)


class Ranking:
    """Ranks teachers for one student.

    By delta_transf, measured or forecast, if there are enough transfers for a forecast; else by rho_pos. With requested
    classes, by the samples of these classes that are expected to be newly right.
    """

    def __init__(
        self,
        evaluated: EvaluatedStudent,
        measured: Sequence[Measured],
        classes: Sequence[RequestedClass],
        hours: Callable[[ModelRecord], Hours],
    ) -> None:
        """`measured`: transfers with one set of settings, into any student."""
        self._student, self._classes, self._hours = evaluated.student, classes, hours
        self._measured = {one.teacher: one for one in measured if one.student == self._student.key}
        self._forecaster = _forecaster(evaluated.models, measured)
        self._usual_rate = _usual_rate(measured, self._student.key)

    @property
    def forecast(self) -> Forecast | None:
        """How delta was forecast; None with too few transfers."""
        return self._forecaster.summary if self._forecaster else None

    def ranked(self, teachers: Sequence[ModelRecord], knowledge: Mapping[str, Knowledge]) -> list[RankedTeacher]:
        """Every teacher, the best first. `knowledge` has each of them, by key."""
        forecast = self._forecasts([one for one in teachers if one.key not in self._measured], knowledge)
        lines = [self._line(teacher, knowledge[teacher.key], forecast.get(teacher.key)) for teacher in teachers]
        return sorted(lines, key=self._order)

    def notes(self, objective: str, n_measured: int) -> list[str]:
        """Notes on the ranking, where it is not by forecast."""
        if self.forecast is None:
            return [
                f"not enough transfers of {objective} to predict from ({n_measured}, and {LEAST_TRANSFERS} are needed): "
                "plan some; ranked by rho_pos until then"
            ]
        if not self.forecast.is_better:
            return ["the prediction is no better than the mean, which is used for every teacher that was not measured"]
        return []

    def _forecasts(self, teachers: Sequence[ModelRecord], knowledge: Mapping[str, Knowledge]) -> dict[str, float]:
        if self._forecaster is None:
            return {}
        pairs = [_facts(teacher, self._student, knowledge[teacher.key]) for teacher in teachers]
        deltas = self._forecaster.predict(pairs)
        return {teacher.key: delta for teacher, delta in zip(teachers, deltas, strict=True)}

    def _line(self, teacher: ModelRecord, knowledge: Knowledge, forecast: float | None) -> RankedTeacher:
        measured = self._measured.get(teacher.key)
        hours, hours_from = self._hours(teacher)
        by_class = [(one.name, *(knowledge.classes or {})[one.index]) for one in self._classes]
        flips = [ClassFlips(name=name, positive=positive, negative=negative) for name, positive, negative in by_class]
        basis = MEASURED
        if not measured:
            basis = "" if self.forecast is None else PREDICTED if self.forecast.is_better else MEAN
        return RankedTeacher(
            teacher=teacher.name,
            teacher_key=teacher.key,
            family=teacher.family,
            params=teacher.params,
            delta_acc=knowledge.delta_acc,
            rho_pos=knowledge.rho_pos,
            rho_neg=knowledge.rho_neg,
            flips_from=knowledge.source,
            classes=flips,
            class_gain=self._class_gain(flips, measured) if self._classes else None,
            delta=measured.delta if measured else forecast,
            delta_low=measured.delta_low if measured else None,
            delta_high=measured.delta_high if measured else None,
            basis=basis,
            gpu_hours=hours,
            hours_from=hours_from,
            job=measured.job if measured else "",
        )

    def _class_gain(self, flips: Sequence[ClassFlips], measured: Measured | None) -> float:
        """Positive flips in the classes, times the share of positive flips that a transfer carries over."""
        rate = measured.rate if measured and measured.rate is not None else self._usual_rate
        return sum(one.positive for one in flips) * rate / 100

    def _order(self, line: RankedTeacher) -> tuple[float, float, float, str]:
        """Sort key: the best first, unknown values last."""
        delta = _descending(line.delta if self.forecast else None)
        return _descending(line.class_gain) if self._classes else 0.0, delta, -line.rho_pos, line.teacher


def _usual_rate(measured: Sequence[Measured], student: str) -> float:
    """% of positive flips that a transfer into the student carries over: its mean, else that of all students, else 100."""
    rates = [(one.student, one.rate) for one in measured if one.rate is not None]
    of_student = [rate for key, rate in rates if key == student]
    return fmean(of_student or [rate for _, rate in rates] or [100.0])


def _forecaster(models: Mapping[str, ModelRecord], measured: Sequence[Measured]) -> Forecaster | None:
    """Fitted on every transfer whose loss stayed finite."""
    rows = [one for one in measured if not one.diverged and one.teacher in models and one.student in models]
    pairs = [_facts(models[one.teacher], models[one.student], one) for one in rows]
    return make_forecaster(pairs, [one.delta for one in rows])


def _facts(teacher: ModelRecord, student: ModelRecord, pair: Knowledge | Measured) -> PairFacts:
    return PairFacts(teacher=teacher, student=student, delta_acc=pair.delta_acc, rho_pos=pair.rho_pos)


def _descending(value: float | None) -> float:
    return float("inf") if value is None else -value
