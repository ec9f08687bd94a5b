"""The model card: how a transferred student was trained, its accuracy, licences, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import kt_study
from kt_study.objectives import facts_of
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.settings import SETTINGS
from orchestrator.results.export.licences import card_licence, licence_of, remark, warnings
from orchestrator.results.report.statistics import wilson

_ALWAYS_LISTED = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "views", "augment", "batchnorm", "reading")
"""Settings in every card; others are listed if the objective uses them or they are not at their default."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The content of a card. `row` is of the table `transfers`; `folder` is the name of the exported folder."""

    study: str
    digest: str
    row: dict[str, Any]
    student: ModelRecord
    teachers: Sequence[ModelRecord]
    dataset: DatasetRecord
    matches: int
    folder: str
    acc_reproduced: float | None = None  # %, if these weights were reproduced and are not bit-identical to the row's


def reproduction_note(facts: CardFacts) -> str:
    """A note on weights that were reproduced after the measurement, with different rounding."""
    return (
        "these weights were reproduced after the measurement and differ from the measured ones by rounding: their accuracy "
        f"is {facts.acc_reproduced:.2f} % on the same samples, instead of {facts.row['acc_after']:.2f} %"
    )


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the header that model hubs read. Equal facts give equal bytes."""
    names = " and ".join(teacher.name for teacher in facts.teachers)
    parts = [
        _header(facts),
        f"# {facts.student.name}, taught by {names}",
        f"An image classifier ({facts.student.num_classes} classes) after knowledge transfer with the objective "
        f"`{facts.row['objective']}`, made by kt-study {kt_study.__version__}.",
        "## Loading",
        _timm_code(facts.folder) if facts.student.timm else _factory_code(facts),
        "## Accuracy",
        _accuracy(facts),
        "## Training",
        _training(facts),
        "## Licences",
        _licences(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _header(facts: CardFacts) -> str:
    library = "timm" if facts.student.timm else "pytorch"
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: image-classification",
            f"license: {card_licence(facts.student, facts.teachers)}",
            "tags:",
            "- image-classification",
            f"- {library}",
            "- knowledge-transfer",
            "---",
        ]
    )


def _timm_code(folder: str) -> str:
    return f"""```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()  # {folder}: this folder
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
```

In a study file of kt-study, as a student or teacher of further transfers:

```toml
[[model]]
name = "{folder}"
timm = "local-dir:{folder}"
```"""


def _factory_code(facts: CardFacts) -> str:
    student, folder = facts.student, facts.folder
    module, _, name = student.factory.partition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(student.arguments.items()))
    table = [
        f"name = {json.dumps(folder)}",
        f"factory = {json.dumps(student.factory)}",
        f"arguments = {_toml(student.arguments)}",
        f'checkpoint = "{folder}/model.safetensors"',
        f"family = {json.dumps(student.family)}",
        f"input_size = {list(student.input_size)}",
        f"mean = {list(student.mean)}",
        f"std = {list(student.std)}",
        f"interpolation = {json.dumps(student.interpolation)}",
        f"crop_pct = {student.crop_pct}",
        f"crop_mode = {json.dumps(student.crop_mode)}",
        f"num_classes = {student.num_classes}",
    ]
    size = "x".join(map(str, student.input_size))
    return f"""timm does not have this architecture: `{student.factory}` builds it.

```python
from safetensors.torch import load_file
from {module} import {name.partition(".")[0]}

model = {name}({arguments}).eval()
model.load_state_dict(load_file("{folder}/model.safetensors"))  # {folder}: this folder
```

Images: {size}, {student.interpolation}, centre crop {student.crop_pct} ({student.crop_mode}), mean
{list(student.mean)}, standard deviation {list(student.std)}. In a study file of kt-study:

```toml
[[model]]
{chr(10).join(table)}
```"""


def _accuracy(facts: CardFacts) -> str:
    row = facts.row
    if row["acc_after"] is None:
        return (
            f"Unknown: data set {row['dataset']} ({row['n']} validation samples) has no labels. The transfer changed "
            f"{row['changed']:.2f} % of the predictions; student and teacher agreed on {row['agreement_before']:.2f} % "
            f"before and on {row['agreement_after']:.2f} % after it."
        )
    lines = [
        f"On the {row['n']} validation samples of {row['dataset']}; intervals of 95 %.",
        "",
        "| | | interval |",
        "| --- | --- | --- |",
        f"| accuracy before | {row['acc_before']:.2f} % | {_wilson(row['acc_before'], row['n'])} |",
        f"| accuracy after | {row['acc_after']:.2f} % | {_wilson(row['acc_after'], row['n'])} |",
        f"| change | {row['delta_transf']:+.2f} points | {row['delta_transf_low']:+.2f} to "
        f"{row['delta_transf_high']:+.2f} points (paired bootstrap) |",
        f"| knowledge gain: newly right | {row['knowledge_gain']:.2f} % | |",
        f"| knowledge loss: newly wrong | {row['knowledge_loss']:.2f} % | |",
        f"| McNemar's p of before against after | {row['mcnemar_p']:.3g} | |",
    ]
    if row["acc_teacher"] is not None:
        lines.append(f"| accuracy of the (best) teacher | {row['acc_teacher']:.2f} % | |")
    lines += ["", "Accuracies have Wilson's interval. " + _selection(facts)]
    if facts.acc_reproduced is not None:
        lines += ["", f"Note: {reproduction_note(facts)}."]
    return "\n".join(lines)


def _selection(facts: CardFacts) -> str:
    if facts.matches == 1:
        return "It was the only matching transfer."
    return (
        f"This is the most accurate of {facts.matches} matching transfers on these same samples, so its accuracy is biased "
        "upwards: measure it on other samples before you rely on the number."
    )


def _wilson(percent: float, n: int) -> str:
    """The 95 % score interval of an accuracy."""
    share = wilson(round(percent * n / 100), n)
    return f"{share.low:.2f} to {share.high:.2f} %"


def _training(facts: CardFacts) -> str:
    row = facts.row
    lines = [
        f"| study | {facts.study}, job {row['job_id']} (`{facts.digest}`) |",
        f"| student | {facts.student.name} (`{facts.student.key}`) |",
        *(f"| teacher | {teacher.name} (`{teacher.key}`) |" for teacher in facts.teachers),
        f"| data set | {row['dataset']} (`{facts.dataset.key}`), {row['n_train']} training samples |",
        f"| objective | {row['objective']} |",
        f"| seed | {row['seed']} |",
        *(f"| {name} | {row[name]} |" for name in _listed_settings(row)),
        f"| device | {row['device']} |",
        f"| versions | {row['versions']} |",
    ]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _listed_settings(row: dict[str, Any]) -> Iterator[str]:
    used = facts_of(row["objective"]).uses
    for name in SETTINGS:
        changed = row[name] is not None and row[name] != SETTINGS[name].default
        if SETTINGS[name].role != "output" and (changed or name in _ALWAYS_LISTED or name in used):
            yield name


def _licences(facts: CardFacts) -> str:
    lines = ["| model | licence of its weights | |", "| --- | --- | --- |"]
    for role, model in [("student", facts.student), *(("teacher", teacher) for teacher in facts.teachers)]:
        licence = licence_of(model)
        lines.append(f"| {role} {model.name} | {licence} | {remark(licence)} |")
    noted = [f"{line[0].upper()}{line[1:]}." for line in warnings(facts.student, facts.teachers)]
    start = "Training started from the student's weights and used the teacher's outputs: both licences apply."
    return "\n".join([*lines, "", " ".join([start, *noted])])


def _toml(arguments: dict[str, Any]) -> str:
    """An inline table; arguments are numbers, texts, flags and lists of them, which TOML writes like JSON."""
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in sorted(arguments.items())) + " }"
