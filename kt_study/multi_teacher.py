"""Several teachers for one student: the transfers to plan, in an order that shares common work.

* `parallel`: one transfer; the data partition picks a teacher, or the frozen student, for each sample (Sec. 5.2).
* `sequential`: a chain. Stage k learns from teacher k and starts from the student of stage k-1, which is also its frozen
  student. The specification of a stage names all teachers up to its own, so a chain of one teacher *is* the single
  transfer, and chains with common first stages share them.
* `soup`: the mean of the K single transfers' weights (Wortsman et al. 2022); a job of kind `soup`.

A stage or a soup reads weights that other transfers keep, so those are planned with `keep = "all"`. `keep` does not change
the identity of a job: `merge_kept` merges the values within a plan, `kt_study.store` sets it on an open job of the database,
and a `remake` job trains the student again if its job is already done.

Parallel teachers are for objectives whose data partition chooses by confidence, kl_dp and kl_dp_unsupervised: the
paper defines the mode by that partition, and its Table 9, for plain KL, has no such column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from kt_study.errors import PairsError, UsageError
from kt_study.hashing import digest, job_digest
from kt_study.records import ModelRecord, TransferSpec, as_spec
from kt_study.settings import Settings

TRANSFERRED = "transfer:"
"""Prefix of a model record's `weights`: the job whose student it is. Such a model waits for that job."""


def transfer_digest(spec: TransferSpec) -> str:
    """Digest of the job that does this transfer: of kind `soup` for soups, else `transfer`."""
    kind = "soup" if spec.settings.multi_teacher == "soup" else "transfer"
    return job_digest(kind, as_spec(spec))


def single_of(spec: TransferSpec, teacher: str) -> TransferSpec:
    """The single-teacher transfer with the settings of `spec`, its student kept for others to read."""
    settings = replace(spec.settings, multi_teacher="single", teacher_order=Settings().teacher_order, keep="all")
    return replace(spec, teachers=(teacher,), settings=settings)


def previous_stage(spec: TransferSpec) -> TransferSpec | None:
    """The stage before this one; None for what starts from the original student."""
    if spec.settings.multi_teacher != "sequential" or len(spec.teachers) < 2:
        return None
    if len(spec.teachers) == 2:
        return single_of(spec, spec.teachers[0])
    return replace(spec, teachers=spec.teachers[:-1], settings=replace(spec.settings, keep="all"))


def stage_number(spec: TransferSpec) -> int:
    """Stage of a sequential transfer, from 0; 0 for every other transfer."""
    return len(spec.teachers) - 1 if spec.settings.multi_teacher == "sequential" else 0


def stage_start_key(spec: TransferSpec) -> str:
    """Key of the model from which this transfer starts, its frozen student."""
    before = previous_stage(spec)
    return spec.student if before is None else transferred_key(spec.student, transfer_digest(before))


def transferred_key(student: str, job: str) -> str:
    """Key of the student that the transfer `job` makes."""
    return digest({"student": student, "weights": TRANSFERRED + job})


def transferred_record(student: ModelRecord, spec: TransferSpec) -> ModelRecord:
    """The record of the student that the transfer `spec` makes of `student`: same architecture, new key and weights.

    `worker.models.build` builds it once the job is done.
    """
    job = transfer_digest(spec)
    return replace(
        student,
        key=transferred_key(student.key, job),
        name=f"{student.name}<-{job[:8]}",
        weights=TRANSFERRED + job,
        checkpoint=f"weights/{job}.safetensors",
        top1_published=None,
    )


def job_of_weights(record: ModelRecord) -> str | None:
    """Digest of the transfer whose student this is, None for any other model."""
    return record.weights.removeprefix(TRANSFERRED) if record.weights.startswith(TRANSFERRED) else None


def needed_transfers(spec: TransferSpec) -> list[TransferSpec]:
    """The transfers whose kept weights this one reads directly: the stage before, or the singles of a soup."""
    if spec.settings.multi_teacher == "soup":
        return [single_of(spec, teacher) for teacher in spec.teachers]
    before = previous_stage(spec)
    return [] if before is None else [before]


def order_teachers(
    teachers: Sequence[ModelRecord], *, order: str, accuracy: Mapping[str, float] | None = None
) -> list[ModelRecord]:
    """Teachers in the order of a sequential transfer.

    Args:
        order: ascending or descending accuracy (equal ones by name), or given.
        accuracy: top-1 in % by model key; wins over the published one.

    Raises:
        PairsError: a teacher whose accuracy is unknown.
    """
    if order == "given":
        return list(teachers)
    known = accuracy or {}
    tops = {teacher.key: known.get(teacher.key, teacher.top1_published) for teacher in teachers}
    if missing := [teacher.name for teacher in teachers if tops[teacher.key] is None]:
        raise PairsError(
            f"sequential teachers cannot be put in {order} order: the accuracy of {missing[0]!r} is not known yet; "
            "run its evaluation first and plan again, or set teacher_order = 'given'"
        )
    sign = 1 if order == "ascending" else -1
    return sorted(teachers, key=lambda teacher: (sign * float(tops[teacher.key] or 0.0), teacher.name))


def multi_teacher_specs(spec: TransferSpec, mode: str) -> list[TransferSpec]:
    """All transfers of one multi-teacher run, each after those it needs; the last one is the run itself.

    Args:
        spec: the transfer of all teachers, for `sequential` in the order of the stages.
        mode: sequential, parallel or soup.

    Raises:
        UsageError: a mode that does not exist, or no teacher.
    """
    if mode not in ("sequential", "parallel", "soup") or not spec.teachers:
        raise UsageError(
            f"multi_teacher = {mode!r} with {len(spec.teachers)} teachers; use sequential, parallel or soup"
        )
    if mode == "sequential" and len(spec.teachers) == 1:
        return [replace(spec, settings=replace(spec.settings, multi_teacher="single", teacher_order="ascending"))]
    order = spec.settings.teacher_order if mode == "sequential" else Settings().teacher_order
    last = replace(spec, settings=replace(spec.settings, multi_teacher=mode, teacher_order=order))
    chain = [last]
    while before := needed_transfers(chain[0]):
        chain = [*before, *chain]
    return chain


def intermediate_students(student: ModelRecord, specs: Iterable[TransferSpec]) -> list[ModelRecord]:
    """Records of the students between the stages of `specs`; register them, for logits jobs forward them."""
    stages = [before for spec in specs if (before := previous_stage(spec)) is not None]
    return [transferred_record(student, stage) for stage in dict.fromkeys(stages)]


def merge_kept(specs: Iterable[TransferSpec]) -> list[TransferSpec]:
    """Each transfer once: of those that differ only in `keep`, the one that keeps most. Order of first appearance."""
    rank = {"none": 0, "best": 1, "all": 2}
    chosen: dict[str, TransferSpec] = {}
    for spec in specs:
        same = transfer_digest(spec)
        if same not in chosen or rank[spec.settings.keep] > rank[chosen[same].settings.keep]:
            chosen[same] = spec
    return list(chosen.values())
