"""The licences of a student and its teachers, and what they imply for the transferred student; not legal advice."""

from __future__ import annotations

from collections.abc import Sequence

from kt_study.records import ModelRecord

_PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
_NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research")
UNKNOWN = "unknown"


def licence_of(model: ModelRecord) -> str:
    """The licence of a model's weights as timm or the study file states it, or `unknown`."""
    return model.license or UNKNOWN


def is_non_commercial(licence: str) -> bool:
    """Whether the licence's name excludes commercial use, e.g. cc-by-nc-4.0."""
    return any(mark in licence.lower() for mark in _NON_COMMERCIAL)


def remark(licence: str) -> str:
    """One remark about a licence for the table of a card."""
    if licence == UNKNOWN:
        return "unknown: ask the publisher of these weights before you use or share them"
    if is_non_commercial(licence):
        return "non-commercial use only"
    return "permissive" if licence.lower() in _PERMISSIVE else "a custom licence: read it before you use or share"


def warnings(student: ModelRecord, teachers: Sequence[ModelRecord]) -> list[str]:
    """One line for each model whose licence restricts the student, or is unknown."""
    found = []
    for role, model in [("student", student), *(("teacher", teacher) for teacher in teachers)]:
        licence = licence_of(model)
        if is_non_commercial(licence):
            found.append(f"the {role} {model.name} is licensed for non-commercial use only ({licence})")
        elif licence == UNKNOWN:
            found.append(f"the licence of the {role} {model.name} is unknown")
    return found


def card_licence(student: ModelRecord, teachers: Sequence[ModelRecord]) -> str:
    """The `license` of a card's header: that of all the models if they have the same permissive one, else `other`."""
    licences = {licence_of(model) for model in (student, *teachers)}
    (first, *others) = sorted(licences)
    return first if not others and first.lower() in _PERMISSIVE else "other"
