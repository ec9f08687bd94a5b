"""Whose files kt-study acts on: with a second user, and with a member of the group under a umask that lets it write."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kt_study.errors import UntrustedFile
from kt_study.files import private_folder, write_private, write_text
from kt_study.pilots import PilotOptions, ProbeExit
from kt_study.store import open_store
from kt_study.trust import read_own, require_own
from orchestrator.cluster.launch.submission import node_check
from tests.command_line.tiny import STUDY_FILE
from tests.store.making import claim_one, job, lasting
from tests.users import ALICE, BOB, LAB, STRANGER, User, folder_of

TELL = f'[notify]\ncommand = "{sys.executable} tell.py"\n'
TELLING = "import os\nopen('told', 'a').write(f'{os.geteuid()}\\n')\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Alice's study with a notify command, one job that fails, and a database."""
    with folder_of(ALICE) as made:
        (made / "study.toml").write_text(STUDY_FILE + TELL)
        (made / "tell.py").write_text(TELLING)
        store = open_store(f"sqlite:///{made}/kt-study.db", create=True)
        store.add_study("tiny", {})
        store.plan("tiny", [job(1, kind="no-such-kind")])
        ALICE.owns(*made.iterdir())
        yield made


def modes(*folders: Path) -> dict[str, str]:
    """By path, the modes that are not private."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    assert len(paths) > len(folders)
    wrong = {path: path.stat().st_mode for path in paths if path.stat().st_mode & 0o077}
    return {str(path): stat.filemode(mode) for path, mode in wrong.items()}


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    (line,) = done.stderr.strip().splitlines()
    return line


def followed(line: str) -> None:
    """Do what a message says, as root where it says so."""
    command = re.findall(r"`(ch[^`]*)`", line)[-1]
    subprocess.run(["sh", "-c", command], check=True, timeout=60)


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_what_launches_and_workers_leave_is_private_whatever_the_umask(folder: Path, umask: int) -> None:
    done = ALICE.kt_study(folder, "launch", "--workers", "1", "--wait", umask=umask)
    assert done.returncode == 1, done.stderr  # the job has failed
    assert modes(folder / ".kt-study", folder / "logs") == {}
    assert (folder / "told").read_text().split() == [str(ALICE.uid)] * 2, "a failure, and the end"
    assert stat.S_IMODE((folder / "told").stat().st_mode) == 0o666 & ~umask, "a command has the user's own umask"
    assert [path.name for path in folder.rglob("*.out")], "the worker's log is among what was looked at"


def test_no_group_can_write_what_kt_study_writes(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        write_text(tmp_path / "study.toml", STUDY_FILE)
        open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    finally:
        os.umask(before)
    written = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert written.items() >= {("study.toml", 0o644), ("kt-study.db", 0o644)}
    assert not any(mode & 0o022 for mode in written.values())


OPENED: dict[str, Callable[[Path], None]] = {
    "study.toml": lambda path: path.chmod(0o664),
    "kt-study.db": lambda path: path.chmod(0o666),
    "tell.py": lambda path: path.chmod(0o664),
    ".": lambda path: path.chmod(0o2775),
    "./": lambda path: path.chmod(0o1777),
    "study.toml of Bob": BOB.owns,
    ". of Bob": BOB.owns,
    "kt-study.db of a stranger": STRANGER.owns,
    ".kt-study of Bob": lambda path: open_folder_of_bob(path),
}


def open_folder_of_bob(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    BOB.owns(path)


def test_launch_refuses_what_others_may_write_and_its_advice_helps(folder: Path) -> None:
    fail_the_job(folder)
    for name, opened in OPENED.items():
        path = folder / name.partition(" ")[0]
        opened(path)
        line = one_line(ALICE.kt_study(folder, "launch"), 3)
        assert line.startswith(f"kt-study: {path} "), name
        assert not (folder / ".kt-study" / "notify").exists()
        followed(line)
    done = ALICE.kt_study(folder, "launch")
    assert done.stdout.startswith("nothing to do: "), done.stderr
    assert (folder / ".kt-study" / "notify").exists()


def test_a_link_counts_as_what_it_leads_to(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (folder / "study.toml").rename(elsewhere / "real.toml")
    (folder / "study.toml").symlink_to(elsewhere / "real.toml")
    ALICE.owns(elsewhere, folder / "study.toml")
    elsewhere.chmod(0o775)
    os.chown(elsewhere, ALICE.uid, LAB)
    line = one_line(ALICE.kt_study(folder, "launch"), 3)
    assert f"kt-study: {elsewhere} can be written by others (drwxrwxr-x" in line


def armed(folder: Path) -> Path:
    """Alice's study, over, with a message that nobody has sent yet. Returns the file that says where messages go."""
    ALICE.run(folder, sys.executable, "-c", "import os; os.mkdir('.kt-study'); os.mkdir('.kt-study/notify')")
    channels = folder / ".kt-study" / "notify" / "tiny.json"
    channels.write_text(f'{{"command": "{sys.executable} tell.py"}}')
    ALICE.owns(channels)
    fail_the_job(folder)
    return channels


def fail_the_job(folder: Path) -> None:
    store = open_store(f"sqlite:///{folder}/kt-study.db")
    store.fail(claim_one(store), lasting())
    ALICE.owns(*folder.glob("kt-study.db*"))


def test_the_status_of_somebody_elses_study_runs_nothing_of_theirs(folder: Path) -> None:
    armed(folder)
    root = User(0, gid=0)
    done = root.kt_study(folder.parent, "status", "--study", str(folder / "study.toml"))
    assert (done.returncode, done.stderr) == (1, "")
    assert not (folder / "told").exists()
    assert sorted(path.name for path in folder.rglob("tiny*")) == ["tiny.json"], "nor is it marked as told"
    done = ALICE.kt_study(folder, "status")
    assert (done.returncode, done.stderr) == (1, "")
    assert (folder / "told").read_text().split() == [str(ALICE.uid)] * 2


def test_status_names_what_others_could_have_written_and_runs_it_when_that_is_put_right(folder: Path) -> None:
    armed(folder)
    for opened in (".kt-study/notify/tiny.json", ".kt-study/notify", ".kt-study", ".", "tell.py"):
        (folder / opened).chmod((folder / opened).stat().st_mode | 0o020)
        line = one_line(ALICE.kt_study(folder, "status"), 1)
        assert line.startswith(f"no message is sent: {folder / opened} can be written by others")
        assert not (folder / "told").exists()
        followed(line)
    assert ALICE.kt_study(folder, "status").stderr == ""
    assert (folder / "told").read_text().split() == [str(ALICE.uid)] * 2


def test_a_channel_file_that_a_group_member_plants_is_not_used(folder: Path) -> None:
    channels = armed(folder)
    content = channels.read_text()
    channels.unlink()
    channels.parent.chmod(0o775)
    assert BOB.run(channels.parent, "sh", "-c", f"echo '{content}' > tiny.json").returncode == 0
    assert channels.stat().st_uid == BOB.uid
    ALICE.kt_study(folder, "status")
    assert not (folder / "told").exists()


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("webhook_file", "launch"),
        ("database", "status"),
        ("passfile", "launch"),
        ("passfile", "status"),
        ("passfile", "query success-rate"),
        ("passfile", "collect"),
    ],
)
def test_files_that_name_addresses_and_passwords_are_ones_own(folder: Path, kind: str, command: str) -> None:
    secret = folder / "secret"
    secret.write_text("https://127.0.0.1:9/\n")
    ALICE.owns(secret)
    secret.chmod(0o660)
    text = STUDY_FILE
    if kind == "webhook_file":
        text += '[notify]\nwebhook_file = "secret"\n'
    elif kind == "database":
        text = text.replace("[dataset]", 'database = "postgresql://u@127.0.0.1:9/x"\n[dataset]', 1)
        secret = folder / "study.toml"
    else:
        text = text.replace("[dataset]", f'database = "postgresql://u@127.0.0.1:9/x?passfile={secret}"\n[dataset]', 1)
    (folder / "study.toml").write_text(text)
    if kind == "database":
        secret.chmod(0o664)
    line = one_line(ALICE.kt_study(folder, *command.split()), 3)
    assert line.startswith(f"kt-study: {secret} can be written by others")
    followed(line)
    assert not secret.stat().st_mode & 0o022


def shell(folder: Path, pickles: Path) -> subprocess.CompletedProcess[str]:
    """The lines that a job's script runs before it unpickles anything, also when Slurm starts it again."""
    lines = node_check(str(folder), "word", folder / ".kt-study" / "marker", pickles=pickles, hold_s=0)
    return ALICE.run(folder, "bash", "-c", "\n".join([*lines, "echo unpickled"]))


def test_a_job_that_slurm_starts_again_unpickles_only_what_nobody_else_could_write(folder: Path) -> None:
    options = PilotOptions(root=str(folder), token="0a0b0c0d")
    pickles = options.paths.logs / options.token
    private_folder(pickles, below=folder)
    write_private(options.files.marker, b"word", below=folder)
    pickle = pickles / "7_0_submitted.pkl"
    pickle.write_bytes(b"")
    ALICE.owns(folder / "logs", pickles, pickle, options.files.folder, options.files.marker)
    assert shell(folder, pickles).stdout == "unpickled\n"
    for opened, mode in ((pickle, 0o664), (pickles, 0o770), (folder, 0o775)):
        before = opened.stat().st_mode
        opened.chmod(mode)
        done = shell(folder, pickles)
        assert (done.returncode, done.stdout.count("\n")) == (ProbeExit.UNTRUSTED, 1), done
        assert done.stdout.startswith(f"kt-study: {opened} can be written by others")
        followed(done.stdout)
        assert shell(folder, pickles).stdout == "unpickled\n"
        opened.chmod(before)
    BOB.owns(pickle)
    assert "belongs to 28002, not to you" in shell(folder, pickles).stdout


def test_a_worker_leaves_a_folder_that_others_may_write(folder: Path) -> None:
    (folder / "kt-study.db").chmod(0o664)
    line = one_line(ALICE.kt_study(folder, "worker", "--idle", "1"), 3)
    assert line.startswith(f"kt-study: {folder / 'kt-study.db'} can be written by others")


def test_folders_of_ours_that_were_open_are_closed(tmp_path: Path) -> None:
    old = tmp_path / "logs" / "old"
    old.mkdir(parents=True)
    for path, mode in ((old, 0o775), (tmp_path / "logs", 0o755)):
        path.chmod(mode)
    for name, mode in (("log", 0o644), ("pickle", 0o664)):
        (old / name).touch()
        (old / name).chmod(mode)
        os.chown(old / name, os.getuid(), LAB)
    private_folder(tmp_path / "logs" / "new", below=tmp_path)
    assert modes(tmp_path / "logs").keys() == {str(old / "pickle")}
    with pytest.raises(UntrustedFile, match="chmod go-w"):  # a closed folder does not tell who wrote it before
        read_own(old / "pickle", tmp_path)


def test_a_group_of_the_owner_alone_is_nobody_else(tmp_path: Path) -> None:
    """As distributions make them, with umask 002: root's group is one, a lab's is none."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o664)
    require_own(file, tmp_path)
    os.chown(file, 0, LAB)
    with pytest.raises(UntrustedFile, match=rf"\(-rw-rw-r--, group {LAB}\)"):
        require_own(file, tmp_path)
