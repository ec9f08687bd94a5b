"""The same study file and seed give the same pairs, jobs and digests, whatever the order, the process or the day."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.hashing import digest
from orchestrator.planning import Plan, PlanOptions, from_study, model_records
from tests.cli import kt_study
from tests.databases import Databases, ask
from tests.planning.support import DIGITS, FOUR, assert_sound, plan_of, write_study

SETTINGS = (
    "[complementarity]\npairs = 5\nmodels = 4\n",
    '[transfer]\npairs = 3\nobjectives = ["kl", "xe_kl_mcl", "kl_dp"]\n'
    'multi_teacher = ["parallel", "soup", "sequential"]\nteachers_per_student = 2\nteacher_order = "given"\n'
    'augment = "none"\nepochs = 2\n',
)

GOLDEN_PAIRS = {
    "complementarity": "e56575915df66b62d11e5a25d4f5abb5",
    "logits": "7b9ad975fc9f03881dce79a7bc88f4dc",
    "soup": "91a444d6600486d84a3020b8f5d7d111",
    "transfer": "d39e02f86fb1ca11bb5ea338692ed92e",
}
GOLDEN_TRAINED = {
    "all_pairs": "6b55b48a8a7385f8629e5bd0336dfc9d",
    "logits": "f9a61c5aae3fe2165ae337e6a867b31d",
    "train": "0ca19118695d73fe11245bca6e555df6",
}


def plan(folder: Path, models: list[str] = FOUR, head: str = DIGITS) -> Plan:
    return plan_of(folder, head, *SETTINGS, *models)


def by_kind(found: Plan) -> dict[str, str]:
    """One digest for the jobs of each kind, in their order."""
    return {
        kind: digest([job.digest for job in found.jobs.values() if job.kind == kind])
        for kind in sorted(found.by_kind())
    }


def test_a_fixed_study_keeps_its_digests(tmp_path: Path) -> None:
    """Digests name what is already computed and stored. A default that changes, in a specification, a model record or
    the sampling, would make every finished job of every study in the world count as new: so they are written down here,
    and changing them has to be meant."""
    pairs = plan(tmp_path / "pairs")
    tuned = '[fine_tuning]\nscope = "head"\nepochs = 2\n'
    trained = plan_of(
        tmp_path / "tuned", DIGITS, tuned, *FOUR, options=PlanOptions(complementarity_pairs="all", pairs=0)
    )
    assert_sound(pairs)
    assert (by_kind(pairs), by_kind(trained)) == (GOLDEN_PAIRS, GOLDEN_TRAINED)


def test_the_order_of_the_models_does_not_matter(tmp_path: Path) -> None:
    one, other = plan(tmp_path / "a"), plan(tmp_path / "b", [FOUR[2], FOUR[0], FOUR[3], FOUR[1]])
    assert list(one.jobs) == list(other.jobs)
    assert (one.complementarity_pairs, one.runs) == (other.complementarity_pairs, other.runs)


def test_the_order_of_timms_listing_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = '[study]\nname = "x"\n[dataset]\nkind = "imagefolder"\nval = "v"\n[models]\nuniverse = "timm"\n'
    for folder in ("a", "b"):
        image = tmp_path / folder / "v" / "n01440764" / "1.jpg"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"x")
    one = plan_of(tmp_path / "a", head)
    backwards = tuple(reversed(model_records.catalogue()))
    monkeypatch.setattr(model_records, "catalogue", lambda: backwards)
    other = plan_of(tmp_path / "b", head)
    assert one.models == other.models
    assert one.complementarity_pairs == other.complementarity_pairs
    assert list(one.jobs) == list(other.jobs)


def test_another_seed_gives_other_pairs(tmp_path: Path) -> None:
    one, other = plan(tmp_path / "a"), plan(tmp_path / "b", head=DIGITS.replace("seed = 3", "seed = 4"))
    assert one.complementarity_pairs != other.complementarity_pairs
    assert not set(one.jobs) & {job.digest for job in other.jobs.values() if job.kind == "transfer"}


def test_two_processes_write_the_same_rows_in_the_same_order(tmp_path: Path, databases: Databases) -> None:
    rows = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        write_study(folder, DIGITS, *SETTINGS, *FOUR)
        databases.settle(folder)
        done = kt_study(folder, "plan", environment={"PYTHONHASHSEED": hash_seed})
        assert done.returncode == 0, done.stderr
        rows.append(ask(folder, "SELECT kind, digest, spec, priority FROM jobs ORDER BY id"))
    assert rows[0] == rows[1]
    assert [row[1] for row in rows[0]] == list(plan(tmp_path / "here").jobs)


def test_the_papers_numbers_are_the_defaults() -> None:
    assert (from_study.PAPER_PAIRS, from_study.PAPER_MODELS) == (466, 301)
