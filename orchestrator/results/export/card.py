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

_ALWAYS = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "views", "augment", "batchnorm", "reading")
"""Settings that every card names; others where the objective reads them or they are not at their default."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is written from. `row` is of the table `transfers`; `folder` is the name of the exported folder."""

    study: str
    digest: str
    row: dict[str, Any]
    student: ModelRecord
    teachers: Sequence[ModelRecord]
    dataset: DatasetRecord
    matches: int
    folder: str
    acc_remade: float | None = None  # %, where these weights were made again and are not, to the bit, the row's


def remade(facts: CardFacts) -> str:
    """What to know of weights that were made again, on another machine than the row's."""
    return (
        f"these weights were made again after the measurement and came out otherwise by rounding: {facts.acc_remade:.2f} %"
        f" on the same samples, where the measured ones had {facts.row['acc_after']:.2f} %"
    )


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the head that model hubs read. Equal facts give equal bytes."""
    names = " and ".join(teacher.name for teacher in facts.teachers)
    parts = [
        _head(facts),
        f"# {facts.student.name}, taught by {names}",
        f"An image classifier ({facts.student.num_classes} classes) after knowledge transfer with the objective "
        f"`{facts.row['objective']}`, made by kt-study {kt_study.__version__}.",
        "## How to load it",
        _loading(facts),
        "## How good it is",
        _accuracy(facts),
        "## How it was made",
        _making(facts),
        "## Licences",
        _licences(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _head(facts: CardFacts) -> str:
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


def _loading(facts: CardFacts) -> str:
    return _by_timm(facts.folder) if facts.student.timm else _by_factory(facts)


def _by_timm(folder: str) -> str:
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


def _by_factory(facts: CardFacts) -> str:
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
    return f"""timm has no such architecture: it comes from `{student.factory}`.

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
            f"Not known: data set {row['dataset']} ({row['n']} validation samples) has no labels. The transfer changed "
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
    if facts.acc_remade is not None:
        lines += ["", f"Mind that {remade(facts)}."]
    return "\n".join(lines)


def _selection(facts: CardFacts) -> str:
    if facts.matches == 1:
        return "No other transfer of this choice was there to select from."
    return (
        f"This is the most accurate of {facts.matches} transfers of this choice on these same samples, which flatters "
        "it: measure it on others before you rely on the figure."
    )


def _wilson(percent: float, n: int) -> str:
    """The 95 % score interval: what accuracies the counted samples are likely under."""
    share = wilson(round(percent * n / 100), n)
    return f"{share.low:.2f} to {share.high:.2f} %"


def _making(facts: CardFacts) -> str:
    row = facts.row
    lines = [
        f"| study | {facts.study}, job {row['job_id']} (`{facts.digest}`) |",
        f"| student | {facts.student.name} (`{facts.student.key}`) |",
        *(f"| teacher | {teacher.name} (`{teacher.key}`) |" for teacher in facts.teachers),
        f"| data set | {row['dataset']} (`{facts.dataset.key}`), {row['n_train']} training samples |",
        f"| objective | {row['objective']} |",
        f"| seed | {row['seed']} |",
        *(f"| {name} | {row[name]} |" for name in _telling_settings(row)),
        f"| device | {row['device']} |",
        f"| versions | {row['versions']} |",
    ]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _telling_settings(row: dict[str, Any]) -> Iterator[str]:
    used = facts_of(row["objective"]).uses
    for name in SETTINGS:
        changed = row[name] is not None and row[name] != SETTINGS[name].default
        if SETTINGS[name].role != "output" and (changed or name in _ALWAYS or name in used):
            yield name


def _licences(facts: CardFacts) -> str:
    lines = ["| model | licence of its weights | |", "| --- | --- | --- |"]
    for role, model in [("student", facts.student), *(("teacher", teacher) for teacher in facts.teachers)]:
        licence = licence_of(model)
        lines.append(f"| {role} {model.name} | {licence} | {remark(licence)} |")
    noted = [f"{line[0].upper()}{line[1:]}." for line in warnings(facts.student, facts.teachers)]
    told = "These weights start from the student's and learned from the teacher's outputs: mind both licences."
    return "\n".join([*lines, "", " ".join([told, *noted])])


def _toml(arguments: dict[str, Any]) -> str:
    """An inline table; arguments are numbers, texts, flags and lists of them, which TOML spells as JSON does."""
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in sorted(arguments.items())) + " }"
