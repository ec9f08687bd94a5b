"""The study file: its keys as records, with a description of each, and errors that name the key to fix.

The keys of a transfer's settings come from `kt_study.settings`. docs/study-file.md is generated from here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, field

from kt_study.errors import StudyFileError
from kt_study.files import read_text
from kt_study.mistakes import explained, place, unusable_number
from kt_study.objectives import OWN_DEFAULTS
from kt_study.printable import acting_character, printable
from kt_study.settings import SETTINGS

Share = Annotated[float, Meta(gt=0, le=1)]
Epochs = Annotated[int, Meta(ge=1, le=1_000_000)]
Family = Literal["cnn", "transformer", "mlp", "hybrid"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the study file's sections: an unknown key is an error."""


Sectional = TypeVar("Sectional", bound=type[Section])


def _with_settings(name: str) -> Callable[[Sectional], Sectional]:
    """Add to a section a key for each setting that the study file has there.

    Where the default depends on the objective, the key has none.
    """

    def keys() -> Iterator[tuple[str, Any, Any]]:
        for setting in SETTINGS.values():
            if setting.section == name and setting.name in OWN_DEFAULTS:
                meta = Meta(description=f"{setting.description.removesuffix('.')}; default: the objective's own.")
                yield setting.name, Annotated[setting.annotation, meta] | None, None
            elif setting.section == name:
                yield setting.name, setting.annotation, setting.default

    def extended(section: Sectional) -> Sectional:
        made = msgspec.defstruct(
            section.__name__, list(keys()), bases=(section,), module=__name__, frozen=True, kw_only=True
        )
        made.__doc__ = section.__doc__
        return cast(Sectional, made)

    return extended


class StudySection(Section, frozen=True, kw_only=True):
    """[study]"""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            pattern=r"^[\w.-]+$",
            description="Name of the study; planning a name again adds only new jobs.",
        ),
    ]
    seed: Annotated[int, Meta(ge=0, description="Seed of pairs, subsets, views and training order.")] = 0
    database: Annotated[str, Meta(description="URL of the job database; --db and KT_STUDY_DB override it.")] = ""


@_with_settings("dataset")
class DatasetSection(Section, frozen=True, kw_only=True):
    """[dataset]"""

    kind: Annotated[str, Meta(description="imagefolder, digits, idx, predictions, or another registered kind.")]
    name: Annotated[str, Meta(description="Name in the result rows; empty for the kind.")] = ""
    train: Annotated[str, Meta(description="Transfer set: one folder per class, or the kind's own layout.")] = ""
    val: Annotated[str, Meta(description="Validation set, in the same layout.")] = ""
    path: Annotated[str, Meta(description="Folder of kinds that keep all splits in one place.")] = ""
    labels: Annotated[
        bool | Literal["val"],
        Meta(description="false: images without labels, in any folders; val: only validation samples have labels."),
    ] = True
    source: Annotated[str, Meta(description="For kind timm: hfds/NAME, wds/, torch/NAME.")] = ""
    arguments: Annotated[
        dict[str, Any], Meta(description="For kind timm: more arguments for timm's reader, such as input_key.")
    ] = {}
    train_fraction: Annotated[Share, Meta(description="Stratified share of the training samples to use.")] = 1.0
    train_per_class: Annotated[
        int, Meta(ge=0, description="Training samples to use per class; 0 for train_fraction.")
    ] = 0
    classes: Annotated[
        Literal["auto", "imagenet", "sorted"],
        Meta(description="Numbering of class folders: ImageNet's synsets, sorted names, or the one that fits."),
    ] = "auto"
    class_names: Annotated[
        str,
        Meta(description="For kind predictions: text file with one class per line, in the order of their numbers."),
    ] = ""
    class_similarity: Annotated[
        Literal["auto", "none", "clip", "wordnet", "sentence-model"],
        Meta(
            description="Source of class similarities; auto: class_embeddings, else the first of clip, wordnet and "
            "sentence-model that is available on the worker's machine."
        ),
    ] = "auto"
    class_embeddings: Annotated[
        str, Meta(description="Matrix [classes, d] (.npy) for class similarities, used with auto.")
    ] = ""
    clip_weights: Annotated[
        str, Meta(description="open_clip checkpoint of ViT-B/32; empty to search the usual caches.")
    ] = ""
    wordnet: Annotated[
        str, Meta(description="Folder of WordNet's data.noun and index.noun; empty for /usr/share/wordnet.")
    ] = ""


class ModelsSection(Section, frozen=True, kw_only=True):
    """[models]"""

    universe: Annotated[
        Literal["timm", "listed", "digits-zoo"],
        Meta(description="Every ImageNet-1k tag of timm, only the [[model]] tables, or the embedded digits zoo."),
    ] = "listed"
    include: Annotated[list[str], Meta(description="Globs of model names to keep.")] = []
    exclude: Annotated[list[str], Meta(description="Globs of model names to exclude.")] = []
    families: Annotated[list[Family], Meta(description="Families to keep; empty for all.")] = []
    params_max: Annotated[float, Meta(gt=0, description="Largest model, in millions of parameters.")] | None = None
    params_min: Annotated[float, Meta(ge=0, description="Smallest model, in millions of parameters.")] | None = None
    top1_min: (
        Annotated[
            float,
            Meta(ge=0, le=100, description="Lowest published top-1, %; excludes the many timm models without one."),
        ]
        | None
    ) = None
    top1_max: (
        Annotated[float, Meta(ge=0, le=100, description="Highest published top-1, %; excludes models without one.")]
        | None
    ) = None
    gmacs_max: Annotated[float, Meta(gt=0, description="Most expensive model, in GMACs per image.")] | None = None
    licenses: Annotated[list[str], Meta(description="Globs of licences to keep; empty for all.")] = []


class ModelTable(Section, frozen=True, kw_only=True):
    """[[model]]"""

    name: Annotated[str, Meta(min_length=1, description="Name in the result rows.")]
    timm: Annotated[
        str, Meta(description="A timm tag; an architecture, for local weights; hf-hub:USER/MODEL; local-dir:FOLDER.")
    ] = ""
    factory: Annotated[str, Meta(description="Importable callable that returns a torch module: module:function.")] = ""
    arguments: Annotated[dict[str, Any], Meta(description="Keyword arguments for the factory or for timm.")] = {}
    checkpoint: Annotated[str, Meta(description="Local weights: .safetensors, or .pth/.pt read with weights_only.")] = (
        ""
    )
    family: Annotated[Family | None, Meta(description="Architecture family; known for timm models.")] = None
    input_size: (
        Annotated[
            list[Annotated[int, Meta(ge=1)]], Meta(min_length=3, max_length=3, description="Channels, height, width.")
        ]
        | None
    ) = None
    mean: Annotated[list[float], Meta(description="Mean per channel, for pixels in 0..1.")] | None = None
    std: (
        Annotated[
            list[Annotated[float, Meta(gt=0)]], Meta(description="Standard deviation per channel, for pixels in 0..1.")
        ]
        | None
    ) = None
    interpolation: (
        Annotated[Literal["bilinear", "bicubic", "nearest"], Meta(description="Interpolation for resizing.")] | None
    ) = None
    crop_pct: Annotated[Share, Meta(description="Share of the resized image that the centre crop keeps.")] | None = None
    crop_mode: Annotated[Literal["center", "squash", "border"], Meta(description="timm's crop mode.")] | None = None
    num_classes: (
        Annotated[int, Meta(ge=2, description="Outputs of the classifier; by default those of the data set.")] | None
    ) = None
    random_weights: Annotated[bool, Meta(description="Keep the weights as initialised from the seed: a baseline.")] = (
        False
    )
    license: Annotated[str, Meta(description="Licence of the weights.")] = ""


class ComplementaritySection(Section, frozen=True, kw_only=True):
    """[complementarity]"""

    pairs: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["all"] | None,
        Meta(
            description='Ordered pairs to sample, or "all" in one file; default 466 as in the paper, or all if fewer exist.'
        ),
    ] = None
    models: (
        Annotated[
            int, Meta(ge=2, description="Distinct models that the pairs cover; default 301, or all if fewer exist.")
        ]
        | None
    ) = None


@_with_settings("transfer")
class TransferSection(Section, frozen=True, kw_only=True):
    """[transfer]"""

    pairs: (
        Annotated[int, Meta(ge=0, description="Pairs to sample per objective; default 400, or all if fewer exist.")]
        | None
    ) = None
    students: Annotated[list[str], Meta(min_length=1, description="Globs of the student models.")] = field(
        default_factory=lambda: ["*"]
    )
    teachers: Annotated[list[str], Meta(min_length=1, description="Globs of the teacher models.")] = field(
        default_factory=lambda: ["*"]
    )
    objectives: Annotated[list[str], Meta(min_length=1, description="Transfer objectives.")] = field(
        default_factory=lambda: ["kl", "kl_dp"]
    )
    seeds: (
        Annotated[int, Meta(ge=1)]
        | Annotated[
            list[Annotated[int, Meta(ge=0)]],
            Meta(
                min_length=1,
                description="Replicates of each transfer, or a list of seeds: other order, dropout and views.",
            ),
        ]
    ) = 1
    controls: Annotated[
        bool,
        Meta(description="Add the objectives that tell what the teacher adds: training on labels only, and others."),
    ] = False
    loader: Annotated[Literal["auto", "torch", "ffcv"], Meta(description="Loader of training views.")] = "auto"
    multi_teacher: Annotated[
        list[Literal["sequential", "parallel", "soup"]],
        Meta(description="Multi-teacher modes to add; parallel for kl_dp and kl_dp_unsupervised."),
    ] = []
    teachers_per_student: Annotated[int, Meta(ge=2, description="Teachers per multi-teacher transfer.")] = 3


class FineTuningSection(Section, frozen=True, kw_only=True):
    """[fine_tuning]"""

    scope: Annotated[
        Literal["head", "all", "body"],
        Meta(
            description="Trained layers: the last one; all; or all, with the old last layer restored at the end, for "
            "teachers from another domain."
        ),
    ] = "head"
    models: Annotated[list[str], Meta(min_length=1, description="Globs of the models to train before the study.")] = (
        field(default_factory=lambda: ["*"])
    )
    epochs: Annotated[Epochs, Meta(description="Passes over the training samples.")] = 50
    batch_size: (
        Annotated[int, Meta(ge=2, description="Samples per step; default 256 for head, 64 otherwise.")] | None
    ) = None
    lr: (
        Annotated[
            float, Meta(gt=0, description="Peak learning rate; default 0.1 for head, 2.5e-3 for body, 1e-4 for all.")
        ]
        | None
    ) = None
    weight_decay: Annotated[float, Meta(ge=0, description="Weight decay.")] = 1e-4
    augment: Annotated[
        Literal["none", "flip", "crop_flip", "authors"], Meta(description="What a view does to an image.")
    ] = "crop_flip"
    dataset: (
        Annotated[
            DatasetSection, Meta(description="Data set to train on, with the keys of [dataset]; default: [dataset].")
        ]
        | None
    ) = None


class NotifySection(Section, frozen=True, kw_only=True):
    """[notify]"""

    webhook: Annotated[
        str, Meta(description="Address to post messages to as JSON; it is a secret, so prefer webhook_file.")
    ] = ""
    webhook_file: Annotated[
        str, Meta(description="File with the address on its only line; KT_STUDY_WEBHOOK overrides both.")
    ] = ""
    command: Annotated[
        str, Meta(description="Command that receives the message on standard input; run without a shell.")
    ] = ""
    on: Annotated[
        list[Literal["finished", "failure"]],
        Meta(description="Events to report: no job is left that can run (finished), and the first failure."),
    ] = field(default_factory=lambda: ["finished", "failure"])


class StudyFile(Section, frozen=True, kw_only=True):
    """A whole study file."""

    study: StudySection
    dataset: DatasetSection
    models: ModelsSection = ModelsSection()
    model: list[ModelTable] = []
    complementarity: ComplementaritySection = ComplementaritySection()
    transfer: TransferSection = TransferSection()
    fine_tuning: FineTuningSection | None = None
    notify: NotifySection = NotifySection()


def read_study(path: Path) -> StudyFile:
    """Read and check a study file.

    Raises:
        StudyFileError: no such file, not TOML, an unknown key, a wrong type or a value out of range.
    """
    if printable(folder := str(path.absolute().parent)) != folder:
        raise StudyFileError(f"{folder}: a control character or the end of a line in the path; rename the folder")
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise StudyFileError(
                f"{path}: this link leads nowhere ({path.readlink()}); correct or remove it"
            ) from error
        raise StudyFileError(
            f"{path}: no such study file; `kt-study init` writes one, --study names another"
        ) from error
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        tree = tomllib.loads(text)
        if unclean := acting_character(_names_and_paths(tree)):
            raise StudyFileError(f"{path}: {place(unclean)}a control character or the end of a line; take it out")
        study = msgspec.convert(tree, StudyFile)
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise StudyFileError(f"{path}: {explained(str(error), StudyFile)}") from error
    if unusable := unusable_number(tree):
        raise StudyFileError(f"{path}: {unusable}")
    _check_models(path, study)
    if study.notify.webhook and not is_web_address(study.notify.webhook):
        raise StudyFileError(f"{path}: [notify] webhook: no http:// or https:// address")
    return study


def _names_and_paths(tree: dict[str, Any]) -> dict[str, Any]:
    """The keys whose values reach terminals and Slurm's scripts: all but the user's own arguments and command."""
    models = tree.get("model")
    if isinstance(models, list):
        tree = tree | {"model": [_without(model, "arguments") for model in models]}
    return {
        key: _without(section, "arguments" if key == "dataset" else "command" if key == "notify" else "")
        for key, section in tree.items()
    }


def _without(section: Any, key: str) -> Any:
    return {name: value for name, value in section.items() if name != key} if isinstance(section, dict) else section


def is_web_address(text: str) -> bool:
    """Whether a webhook can be posted to it."""
    return text.startswith(("https://", "http://"))


def recorded(study: StudyFile) -> dict[str, Any]:
    """The study file as the database keeps it: builtins, without what may hold a secret."""
    kept: dict[str, Any] = msgspec.to_builtins(study)
    del kept["notify"], kept["study"]["database"]
    return kept


def given_settings(transfer: TransferSection, dataset: DatasetSection) -> dict[str, Any]:
    """The settings of a transfer by name, as the sections give them, without those that are left to the objective."""
    sections = {"transfer": transfer, "dataset": dataset}
    given = {
        setting.name: getattr(sections[setting.section], setting.name)
        for setting in SETTINGS.values()
        if setting.section in sections
    }
    return {name: value for name, value in given.items() if value is not None}


def _check_models(path: Path, study: StudyFile) -> None:
    names = [model.name for model in study.model]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StudyFileError(f"{path}: [[model]] {sorted(twice)[0]!r}: duplicate model name; rename one")
    for model in study.model:
        if bool(model.timm) == bool(model.factory):
            raise StudyFileError(f"{path}: [[model]] {model.name!r} needs exactly one of `timm` and `factory`")
        for key, values in (("mean", model.mean), ("std", model.std)):
            if values is not None and model.input_size and len(values) not in (1, model.input_size[0]):
                raise StudyFileError(
                    f"{path}: [[model]] {model.name!r}: {key} has {len(values)} values for {model.input_size[0]} channels"
                )
        if model.factory and ":" not in model.factory:
            raise StudyFileError(
                f"{path}: [[model]] {model.name!r}: factory = {model.factory!r} is not `module:callable`"
            )
        if model.factory and model.input_size is None:
            raise StudyFileError(f"{path}: [[model]] {model.name!r}: a factory needs input_size, e.g. [3, 224, 224]")
