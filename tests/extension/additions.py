"""What a newcomer adds to a copy of the source, one of each kind, at the places that docs/architecture.md names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_ROW = re.compile(r"^\| ([^|`]+) \| (.*) \|$", re.MULTILINE)
_PATH = re.compile(r"`((?:\w+/)+[\w.*-]+)`")


def places(page: str) -> dict[str, list[str]]:
    """The table "Where to add": a new what -> the paths of its row, in order."""
    table = page.partition("## Where to add\n")[2].partition("\n## ")[0]
    return {what: _PATH.findall(cells) for what, cells in _ROW.findall(table) if _PATH.search(cells)}


@dataclass(kw_only=True)
class Newcomer:
    """Writes into `checkout`, at places of its architecture page only, and remembers where."""

    checkout: Path
    touched: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._places = places((self.checkout / "docs/architecture.md").read_text(encoding="utf-8"))

    def module(self, what: str, name: str, text: str) -> None:
        """The new file of a row: the one with NAME in its path."""
        (place,) = [path for path in self._places[what] if "NAME" in path]
        path = self._touch(place.replace("NAME", name))
        assert not path.exists()
        path.write_text(text.lstrip("\n"), encoding="utf-8")

    def record(self, what: str, **changes: str) -> None:
        """Text put before a text that is there once, in the row's other file; `changes` are pairs at1=, put1=, at2=, ..."""
        (place,) = [path for path in self._places[what] if "NAME" not in path]
        path = self._touch(place)
        source = path.read_text(encoding="utf-8")
        for number in range(1, len(changes) // 2 + 1):
            anchor = changes[f"at{number}"]
            assert source.count(anchor) == 1, (place, anchor)
            source = source.replace(anchor, changes[f"put{number}"].lstrip("\n") + anchor)
        path.write_text(source, encoding="utf-8")

    def _touch(self, place: str) -> Path:
        self.touched.add(place)
        return self.checkout / place


def add_everything(newcomer: Newcomer) -> None:
    """An objective with two settings of its own, a setting, a job kind with a result table, a data set kind, a figure, a
    query."""
    newcomer.module("objective", "sharpened", OBJECTIVE)
    newcomer.record("objective", at1=")\n\nOBJECTIVES = {", put1=FACTS)
    newcomer.record("setting of a transfer", at1="    epochs: Annotated[", put1=SETTINGS)
    newcomer.module("job kind", "echo", JOB_KIND)
    newcomer.record(
        "job kind",
        at1="JOB_KINDS = {\n",
        put1=SPEC,
        at2='        JobKind(\n            name="train",\n',
        put2=RECORD,
    )
    newcomer.record(
        "result table or column",
        at1="RESULT_TABLES = {\n",
        put1=TABLE,
        at2="EVALUATIONS, COMPLEMENTARITY,",
        put2="ECHOES, ",
    )
    newcomer.module("data set kind", "stripes", DATASET)
    newcomer.record("data set kind", at1='    "imagefolder": ', put1='    "stripes": "kt_study.datasets.stripes",\n')
    newcomer.module("figure", "sharpness", FIGURE)
    newcomer.record(
        "figure",
        at1="    students,\n    success,\n",
        put1="    sharpness,\n",
        at2="    complementarity.FIGURE_1A,\n",
        put2="    sharpness.FIGURE,\n",
    )
    newcomer.module("query", "by-sharpness", QUERY)


OBJECTIVE = '''
"""sharpened: KL to the teacher's probabilities to the power of `sharpness`, plus `floor`."""

from __future__ import annotations

from torch import Tensor

from worker.objectives.base import Batch, Objective, given
from worker.objectives.terms import kl_divergence


class Sharpened(Objective):
    """Distillation of a sharpened teacher."""

    def forward(self, batch: Batch) -> Tensor:
        """Losses in nats, float32 [b]."""
        target = given(batch.target, "target") * self.settings.sharpness
        return kl_divergence(batch.logits, target, self.settings.temperature) + self.settings.floor
'''

FACTS = """
    ObjectiveFacts(
        name="sharpened",
        label="Sharpened KL",
        meaning="KL to a sharpened teacher",
        reads_labels=False,
        uses=frozenset({"temperature", "sharpness", "floor"}),
        defaults={"floor": 0.25},
    ),
"""

SETTINGS = """
    sharpness: Annotated[float, _described("objective", "Power of the teacher's probabilities.", ge=0)] = 1.0
    floor: Annotated[float, _described("objective", "What is added to the loss.", unit="nats", ge=0)] = 0.0
    patience: Annotated[int, _described("training", "A number that nothing reads.", ge=0)] = 3
    motto: Annotated[Literal["it's", "is"], _described("training", "A word that nothing reads.")] = "it's"
    hushed: Annotated[bool, _described("execution", "A flag that nothing reads.")] = False
"""

SPEC = '''
class EchoSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Something to say again."""

    text: str


'''

RECORD = """
        JobKind(name="echo", meaning="a text, once more", spec=EchoSpec, priority=40, tables=("echoes",)),
"""

JOB_KIND = '''
"""Job kind `echo`: says its text once more."""

from __future__ import annotations

from typing import Any

import msgspec

from kt_study.job_kinds import EchoSpec
from worker.job.context import JobContext, Rows


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """One row of `echoes`."""
    return {"echoes": [{"text": msgspec.convert(spec, EchoSpec).text, "n": 1}]}
'''

TABLE = """
ECHOES = ResultTable(
    name="echoes",
    meaning="One text, said once more.",
    columns=(_text("text", "what was said"), _count("n", "how often", "times")),
)

"""

DATASET = '''
"""kind = "stripes": images of ten stripe patterns, drawn when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kt_study.datasets.kind import ArrayImages, Found, Listing
from kt_study.study import DatasetSection
from kt_study.records import DatasetRecord

CLASSES, SIDE = 10, 32


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:
    """Forty images in both splits, four of each class."""
    labels = np.arange(40, dtype=np.int32) % CLASSES
    listing = Listing(names=[f"stripes-{i}" for i in range(40)], labels=labels, sizes=np.full(40, -1, np.int64))
    progress(40)
    return Found(listings={"train": listing, "val": listing}, class_names=[f"{i + 1} wide" for i in range(CLASSES)])


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> ArrayImages:
    """uint8 [n, 32, 32]."""
    numbers = [int(name.removeprefix("stripes-")) for name in names]
    rows = [(np.arange(SIDE) // (number % CLASSES + 1) % 2) * (255 - number) for number in numbers]
    return ArrayImages(pixels=np.stack([np.tile(row, (SIDE, 1)) for row in rows]).astype(np.uint8))
'''

FIGURE = '''
"""Accuracy before and after, by objective."""

from __future__ import annotations

from orchestrator.results.report.missing import SINGLE, complete
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import Layer, Panel, Plot
from orchestrator.results.report.study_results import StudyResults


def build(study: StudyResults) -> Plot:
    """A point per transfer."""
    rows = complete(study.single, SINGLE)
    layer = Layer(mark="points", data=rows, x="acc_before", y="acc_after", colour="objective")
    panel = Panel(x_label="accuracy before, %", y_label="accuracy after, %", layers=(layer,))
    return Plot(panels=(panel,), sample=f"{len(rows)} transfers")


FIGURE = Figure(
    key="sharpness",
    title="Before and after",
    caption="Accuracy of the student.",
    section="transfer",
    plan="kt-study plan",
    build=build,
)
'''

QUERY = """
-- Transfers by sharpness
-- parameters: study
WITH {runs}
SELECT objective, setting, sharpness, floor, patience, COUNT(*) AS transfers
FROM runs
GROUP BY objective, setting, sharpness, floor, patience
ORDER BY objective, setting
"""
