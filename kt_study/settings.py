"""The settings of a transfer, each stated once, in `Settings`: type, default, bounds, unit and description.

The keys of the study file, the specification of a transfer, the columns of `transfers`, the grouping of the named queries
and the generated pages derive from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

Role = Literal["objective", "training", "execution", "output", "teachers"]
"""What a setting decides: how some objectives teach, which name it in their `uses`; how any student is trained; what moves
a result by less than another seed would; what is evaluated and kept; who teaches."""


def _described(
    role: Role,
    description: str,
    *,
    unit: str = "",
    source: str = "",
    section: str = "transfer",
    refused: bool = False,
    **bounds: Any,
) -> Meta:
    """Everything about a setting but its type and default.

    Args:
        role: what it decides.
        description: what it is, one sentence.
        unit: of its numbers.
        source: where the paper defines it.
        section: of the study file that has a key of its name; empty where other keys decide it.
        refused: whether a study file that sets it is refused for objectives that do not use it. Others are left at their
            default for these, since one file may name several objectives.
        bounds: as of `msgspec.Meta`.
    """
    more = {"role": role, "unit": unit, "source": source, "section": section, "refused": refused}
    return Meta(description=description, extra=more, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The settings of one transfer by their study-file names. Every one of them is a column of `transfers`."""

    epochs: Annotated[
        int, _described("training", "Passes over the transfer set.", unit="epochs", ge=1, le=1_000_000)
    ] = 20
    batch_size: Annotated[int, _described("training", "Samples per step.", unit="samples", ge=1)] = 128
    lr: Annotated[float, _described("training", "Learning rate of SGD.", ge=0)] = 1e-4
    momentum: Annotated[float, _described("training", "Momentum of SGD.", ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, _described("training", "Weight decay of SGD.", ge=0)] = 1e-3
    temperature: Annotated[float, _described("objective", "Softmax temperature T of the KL term.", gt=0)] = 1.0
    kl_weight: Annotated[
        float,
        _described("objective", "Weight lambda of the KL term beside cross-entropy.", source="Eq. 3", ge=0, le=1),
    ] = 0.5
    label_smoothing: Annotated[
        float, _described("objective", "Smoothing of the labels under kl_label_smoothing.", ge=0, lt=1)
    ] = 0.1
    top_k: Annotated[
        int,
        _described(
            "objective", "Classes of the teacher in the KL term; 0 for all.", unit="classes", refused=True, ge=0
        ),
    ] = 0
    warmup_epochs: Annotated[
        int, _described("training", "First epochs, in which only the last layer is trained.", unit="epochs", ge=0)
    ] = 0
    flips: Annotated[
        Literal["all", "positive", "negative"],
        _described(
            "objective",
            "Flip-based partition: the teacher on positive flips only, or the student on negative flips only.",
            refused=True,
        ),
    ] = "all"
    views: Annotated[
        int, _described("training", "Distinct views of a training sample, cycled over epochs.", unit="views", ge=1)
    ] = 2
    augment: Annotated[
        Literal["none", "flip", "crop_flip", "authors"], _described("training", "What a view does to an image.")
    ] = "crop_flip"
    crop: Annotated[
        Literal["study", "student"], _described("training", "Centre crop of a view: the study's or the student's.")
    ] = "study"
    crop_pct: Annotated[
        float,
        _described(
            "training",
            "Centre crop of training views where no random crop is drawn, as a share of the image's shorter side.",
            section="dataset",
            gt=0,
            le=1,
        ),
    ] = 0.875
    batchnorm: Annotated[Literal["train", "frozen"], _described("training", "Batch norm of the student.")] = "train"
    reading: Annotated[
        Literal["paper", "authors"], _described("training", "The paper's text, or the released code where it differs.")
    ] = "paper"
    mcl_tau: Annotated[
        float, _described("objective", "Momentum of the slow weights.", source="Sec. A.3", ge=0, lt=1)
    ] = 0.9999
    mcl_every: Annotated[
        int, _described("objective", "Steps between updates of the slow weights.", unit="steps", ge=1)
    ] = 2
    precision: Annotated[Literal["fp32", "bf16", "fp16"], _described("training", "Arithmetic of the student.")] = "fp32"
    channels_last: Annotated[bool, _described("execution", "Channels-last memory format of the student.")] = False
    grad_clip: Annotated[float, _described("training", "Largest gradient norm; 0 for none.", ge=0)] = 0.0
    micro_batch: Annotated[
        int,
        _described(
            "execution", "Samples per forward pass when a batch is split; 0 for whole batches.", unit="samples", ge=0
        ),
    ] = 0
    deterministic: Annotated[bool, _described("execution", "Deterministic kernels only.")] = False
    compile: Annotated[bool, _described("execution", "Compile the student with torch.compile.")] = False
    eval_every: Annotated[
        int, _described("output", "Epochs between evaluations; 0 for the last only.", unit="epochs", ge=0)
    ] = 1
    keep: Annotated[
        Literal["none", "best", "all"],
        _described(
            "output",
            'Students to keep, "best" one per data set, student and objective over all settings, seeds and studies of '
            "the folder; those of finished transfers are made again.",
        ),
    ] = "none"
    loader: Annotated[Literal["torch", "ffcv"], _described("execution", "Loader of training views.", section="")] = (
        "torch"
    )
    multi_teacher: Annotated[
        Literal["single", "sequential", "parallel", "soup"],
        _described("teachers", "How the teachers of one student are combined.", section=""),
    ] = "single"
    teacher_order: Annotated[
        Literal["ascending", "descending", "given"], _described("teachers", "Order of sequential teachers by accuracy.")
    ] = "ascending"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One field of `Settings`, taken apart. `annotation` is its type with its bounds."""

    name: str
    annotation: Any
    default: Any
    description: str
    role: Role
    unit: str
    source: str
    section: str
    refused: bool

    @property
    def bare_type(self) -> Any:
        """int, float, bool, or the Literal of its choices."""
        return get_args(self.annotation)[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid values of a Literal; empty for other types."""
        return get_args(self.bare_type) if get_origin(self.bare_type) is Literal else ()


def _setting(field: msgspec.structs.FieldInfo) -> Setting:
    meta = get_args(field.type)[1]
    return Setting(
        name=field.name, annotation=field.type, default=field.default, description=meta.description, **meta.extra
    )


SETTINGS = {field.name: _setting(field) for field in msgspec.structs.fields(Settings)}
"""Every setting by name, in the order of `Settings`."""


def named(*roles: Role) -> tuple[str, ...]:
    """The names of the settings of these roles, in the order of `Settings`."""
    return tuple(setting.name for setting in SETTINGS.values() if setting.role in roles)
