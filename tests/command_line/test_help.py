"""Help, completion and the version, for every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from kt_study import __version__
from kt_study.records import Failure
from kt_study.store import open_store
from tests.cli import kt_study, succeeds
from tests.command_line.parsing import all_commands, examples, parse
from tests.store.making import claim_one, job, model, plan

EVERY = dict(all_commands())


@pytest.mark.parametrize("path", EVERY)
def test_examples_are_lines_that_click_takes(path: str) -> None:
    found = examples(EVERY[path])
    ours = [line for line in found if line.startswith("kt-study ")]
    assert ours or any("kt-study" in line for line in found), f"`{path} --help` has no examples"
    for line in ours:
        parse(line)
    if not isinstance(EVERY[path], click.Group):
        assert any(path in line for line in found)


@pytest.mark.parametrize("line", ["kt-study plan --pears 4", "kt-study plan --pairs x", "kt-study cache list"])
def test_the_parser_refuses_what_click_refuses(line: str) -> None:
    with pytest.raises(click.ClickException):
        parse(line)


def test_the_version(tmp_path: Path) -> None:
    assert succeeds(tmp_path, "--version").strip() == f"kt-study, version {__version__}"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("kt-study la", ["launch"]),
        ("kt-study re", ["report", "recommend", "retry", "resume"]),
        ("kt-study cache ", ["ls", "verify", "gc"]),
        ("kt-study launch --work", ["--workers", "--workers-per-gpu"]),
        ("kt-study launch --device c", ["cpu", "cuda"]),
        ("kt-study plan --preset paper-m", ["paper-multi"]),
        ("kt-study query su", ["success-rate"]),
        ("kt-study recommend --objective kl_d", ["kl_dp", "kl_dp_oracle", "kl_dp_random", "kl_dp_unsupervised"]),
    ],
)
def test_the_shell_completes(tmp_path: Path, typed: str, offered: list[str]) -> None:
    assert completed(tmp_path, typed) == sorted(offered)


def completed(folder: Path, typed: str) -> list[str]:
    """What the shell is offered for a line that has been typed so far."""
    environment = {
        "_KT_STUDY_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    done = kt_study(folder, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(line.partition(",")[2] for line in done.stdout.split())


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one job that failed, and the models alpha and beta."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "study.toml").write_text('[study]\nname = "study"\n[dataset]\nkind = "digits"\n')
    store = open_store(f"sqlite:///{folder}/kt-study.db", create=True)
    names = {"alpha": "x", "beta": "y", "beta:untrained": "z", "between": "transfer:j"}
    store.add_models([msgspec.structs.replace(model(name, name), weights=weights) for name, weights in names.items()])
    plan(store, job(1))
    failure = Failure(error="DataError", message="no such file", traceback="", group="0fdfec6b1234")
    store.fail(claim_one(store), failure)
    return folder


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("kt-study export --student ", ["alpha", "beta"]),
        ("kt-study export --teacher b", ["beta"]),
        ("kt-study recommend --student al", ["alpha"]),
        ("kt-study cancel --teacher al", ["alpha"]),
        ("kt-study retry --kind ", ["logits"]),
        ("kt-study retry --error 0f", ["0fdfec6b1234"]),
        ("kt-study retry --study elsewhere.toml --error ", []),
    ],
)
def test_the_shell_completes_what_the_database_knows(planned: Path, typed: str, offered: list[str]) -> None:
    assert completed(planned, typed) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_the_shells_settings_defines_a_completion(tmp_path: Path, shell: str) -> None:
    done = kt_study(tmp_path, environment={"_KT_STUDY_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0, done.stderr
    assert "_kt_study_completion" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lanch",), "no command 'lanch'; did you mean 'launch'?"),
        (("plan", "--par", "4"), "--pairs"),
        (("plan", "--preset", "paper-10pc", "--dry-run"), "did you mean 'paper-10pct'?"),
        (("plan", "--grid", "tempreature=1"), "did you mean 'temperature'?"),
    ],
)
def test_a_slip_gets_the_nearest_name(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = kt_study(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["query"]], ids=" ".join)
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "study.toml").write_text('[study]\nname = "x"\n[dataset]\nkind = "digits"\n')
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kt_study", *arguments],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        3,
        "kt-study: the output cannot be written: No space left on device\n",
    )
