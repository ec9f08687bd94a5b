"""Files as file systems hold them, that `plan` cannot use: one line that names each, in no time, and nothing written."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kt_study.datasets import open_split
from kt_study.paths import StudyPaths
from kt_study.store import open_store
from orchestrator.cli import main
from tests.planning.support import FOUR, model_table, save_resnet, write_study
from tests.users import ALICE, BOB, folder_of

FOLDER = '[study]\nname = "x"\n[dataset]\nkind = "imagefolder"\nval = "val"\n'
PREDICTED = '[study]\nname = "x"\n[dataset]\nkind = "predictions"\npath = "val"\n'
CUB = '[study]\nname = "x"\n[dataset]\nkind = "cub200"\npath = "val"\n'
PATIENCE_S = 60.0

Planned = Callable[..., tuple[int, str, str]]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError where a system call blocks: a pipe without a writer is opened for ever."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """`kt-study ARGUMENTS` in `tmp_path`, in this process: exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["kt-study", *arguments])
        with pytest.raises(SystemExit) as ended, within(PATIENCE_S):
            main()
        streams = capsys.readouterr()
        return int(ended.value.code or 0), streams.out, streams.err

    return run


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(path, "PNG")


def classes(folder: Path, *names: str) -> None:
    """A folder of two images for each class."""
    for name in names or ("ant", "bee"):
        for number in range(2):
            draw(folder / name / f"{number}.png")


def latin1(name: str) -> str:
    """The name as Python sees a file that another program named in Latin-1."""
    return os.fsdecode(name.encode("latin-1"))


def link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


def device(path: Path) -> None:
    if os.geteuid():
        path.symlink_to("/dev/zero")
    else:
        os.mknod(path, 0o20666, os.makedev(1, 5))


def bound(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's address has 108 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def deep(path: Path) -> None:
    handle = os.open(path.parent, os.O_RDONLY)
    for _ in range(110):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


PLACED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "class in Latin-1": (latin1("café/1.png"), draw, r"in the data set, the name b'caf\xe9' is not UTF-8; rename that"),
    "broken link": (
        "ant/x.png",
        link("/nowhere/x.png"),
        "{val}/ant/x.png: this link leads nowhere (/nowhere/x.png); res",
    ),
    "broken class link": (
        "cat",
        link("/nowhere/cat"),
        "{val}/cat: this link leads nowhere (/nowhere/cat); restore what",
    ),
    "link to itself": (
        "ant/x.png",
        link("x.png"),
        "{val}/ant/x.png: Too many levels of symbolic links; it is a link t",
    ),
    "class link to itself": ("cat", link("cat"), "{val}/cat: Too many levels of symbolic links; it is a link that"),
    "link to the parent": ("ant/up", link(".."), "{val}/ant/up: a link leads back to a folder above it; remove the li"),
    "class link to the parent": (
        "all",
        link("."),
        "{val}/all: a link leads back to a folder above it; remove the link",
    ),
    "links to each other": ("ant/b", link("../bee"), "{val}/ant/b/a: a link leads back to a folder above it; remove"),
    "too deep": ("ant/d", deep, "more than 100 folders deep; correct the folder in [dataset]"),
    "pipe": ("ant/x.png", os.mkfifo, "{val}/ant/x.png: not a regular file but a named pipe; remove it"),
    "device": ("ant/x.png", device, "{val}/ant/x.png: not a regular file but a device; remove it"),
    "link to a device": ("ant/x.png", link("/dev/zero"), "{val}/ant/x.png: not a regular file but a device; remove it"),
    "socket": ("ant/x.png", bound, "{val}/ant/x.png: not a regular file but a socket; remove it"),
    "empty image": ("ant/x.png", Path.touch, "{val}: sample ant/x.png of val is empty (0 bytes), 1 such in all; fetch"),
}


@pytest.mark.parametrize("case", PLACED)
def test_what_is_no_image_among_the_images_is_named(tmp_path: Path, planned: Planned, case: str) -> None:
    name, place, told = PLACED[case]
    write_study(tmp_path, FOLDER, *FOUR)
    classes(tmp_path / "val")
    (tmp_path / "val" / "bee" / "a").symlink_to("../ant") if case == "links to each other" else None
    place(tmp_path / "val" / name)
    code, out, err = planned("plan")
    assert (code in (2, 3), out) == (True, ""), err
    assert told.format(val=tmp_path / "val") in err
    assert err.startswith("kt-study: ") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.toml", "val"], "nothing is written"


def test_images_may_have_names_that_are_not_utf8_and_lie_behind_links(tmp_path: Path, planned: Planned) -> None:
    write_study(tmp_path, FOLDER + "train_per_class = 1\ntrain = 'val'\n", *FOUR)
    classes(tmp_path / "val")
    classes(tmp_path / "elsewhere", "cat")
    draw(tmp_path / "val" / "ant" / latin1("café.png"))
    (tmp_path / "val" / "cat").symlink_to("../elsewhere/cat")
    code, _, err = planned("plan", "--pairs", "1", "--complementarity-pairs", "2")
    assert code == 0, err
    store = open_store(f"sqlite:///{tmp_path}/kt-study.db")
    (job,) = [job for job in store.jobs() if job.kind == "transfer"][:1]
    split = open_split(store.dataset(job.spec["dataset"]), "val", StudyPaths(root=tmp_path))
    assert split.class_names == ["ant", "bee", "cat"]
    assert [split.image(i).size for i in range(split.n)] == [(8, 8)] * 7


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("class_names", "{name}: cannot be read"),
        ("recommendation", "{name}: not a recommendation ("),
        ("study", "{name}: cannot be read: not a regular file"),
        ("checkpoint", "[[model]] 'own': no checkpoint at {name}"),
        ("config", "[[model]] 'own': {name}/config.json is missing or no JSON"),
        ("list", "{name}: this list is missing or unreadable"),
        ("database", "{name} is not a file, so it is no SQLite database"),
        ("profile", "{name}: "),
    ],
)
def test_no_command_waits_for_the_writer_of_a_pipe(tmp_path: Path, planned: Planned, name: str, told: str) -> None:
    pipe = {"list": "val/classes.txt", "config": "pipe/config.json"}.get(name, "pipe")
    (tmp_path / pipe).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / pipe)
    (tmp_path / "val").mkdir(exist_ok=True)
    for model in "ab":
        text = f"sample_index,predicted,label\n0,ant,ant\n1,{'ant' if model == 'a' else 'bee'},bee\n"
        (tmp_path / "val" / f"{model}.csv").write_text(text)
    parts = {
        "class_names": (PREDICTED, 'class_names = "pipe"\n'),
        "list": (CUB, *FOUR),
        "checkpoint": (FOLDER, *FOUR, model_table("own", random_weights=None, checkpoint="pipe")),
        "config": (FOLDER, *FOUR, '[[model]]\nname = "own"\ntimm = "local-dir:pipe"\n'),
    }
    write_study(tmp_path, *parts.get(name, (FOLDER, *FOUR)))
    classes(tmp_path / "val")
    if name == "recommendation":
        open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    arguments = {
        "study": ("plan", "--study", "pipe"),
        "recommendation": ("plan", "--from-recommendation", "pipe"),
        "database": ("query", "success-rate", "--db", "sqlite:///pipe"),
        "profile": ("launch", "--partition", "p", "--profile", "pipe"),
    }
    code, out, err = planned(*arguments.get(name, ("plan",)))
    assert (code in (2, 3), out) == (True, ""), err
    shown = "pipe" if name in ("study", "recommendation", "profile") else tmp_path / pipe.removesuffix("/config.json")
    assert told.format(name=shown) in err
    assert err.count("\n") == 1


def test_a_pipe_among_the_prediction_files_is_left_out(tmp_path: Path, planned: Planned) -> None:
    (tmp_path / "val").mkdir()
    os.mkfifo(tmp_path / "val" / "c.csv")
    for model in "ab":
        text = f"sample_index,predicted,label\n0,ant,ant\n1,{'ant' if model == 'a' else 'bee'},bee\n"
        (tmp_path / "val" / f"{model}.csv").write_text(text)
    write_study(tmp_path, PREDICTED, "[complementarity]\npairs = 2\n")
    code, out, err = planned("plan", "--dry-run")
    assert code == 0, err
    assert "2 models" in out and "c.csv" in out


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, planned: Planned) -> None:
    """In a study file, a list of classes, prediction files, timm's config.json, and the lists of a data set."""
    (tmp_path / "val").mkdir()
    for model in "ab":
        text = f"sample_index,predicted,label\n0,ant,ant\n1,{'ant' if model == 'a' else 'bee'},bee\n"
        (tmp_path / "val" / f"{model}.csv").write_bytes(MARK + text.encode())
    (tmp_path / "names.txt").write_bytes(MARK + b"ant\r\nbee\r\n")
    write_study(tmp_path, PREDICTED, 'class_names = "names.txt"\n[complementarity]\npairs = 2\n')
    (tmp_path / "study.toml").write_bytes(MARK + (tmp_path / "study.toml").read_bytes())
    code, out, err = planned("plan", "--dry-run")
    assert (code, err) == (0, "")
    assert "complementarity: 2 ordered pairs of 2 models" in out
    _, out, err = planned("launch", "--partition", "p", "--profile", "names.txt")
    assert "names.txt: Expected '=' after a key" in err, "and not: invalid statement at column 1"


def test_lists_of_a_data_set_may_begin_with_a_byte_order_mark(tmp_path: Path, planned: Planned) -> None:
    birds = tmp_path / "val"
    names = ["001.ant/1.png", "002.bee/1.png", "001.ant/2.png", "002.bee/2.png"]
    for name in names:
        draw(birds / "images" / name)
    lists = {
        "classes": "1 001.ant\n2 002.bee\n",
        "images": "".join(f"{number} {name}\n" for number, name in enumerate(names, 1)),
        "image_class_labels": "1 1\n2 2\n3 1\n4 2\n",
        "train_test_split": "1 1\n2 1\n3 0\n4 0\n",
    }
    for name, text in lists.items():
        (birds / f"{name}.txt").write_bytes(MARK + text.encode())
    write_study(tmp_path, CUB, *FOUR)
    code, _, err = planned("plan", "--dry-run", "--pairs", "1")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (FOLDER.encode("utf-16"), "study.toml: not UTF-8 (invalid start byte at byte 0); save it as UTF-8"),
        (FOLDER.replace("x", "é", 1).encode("latin-1"), "study.toml: not UTF-8 (invalid continuation byte at byte 16)"),
    ],
)
def test_a_study_file_in_another_encoding(tmp_path: Path, planned: Planned, content: bytes, told: str) -> None:
    (tmp_path / "study.toml").write_bytes(content)
    assert told in planned("plan")[2]


def test_a_study_file_that_is_a_link_to_nowhere(tmp_path: Path, planned: Planned) -> None:
    (tmp_path / "study.toml").symlink_to("gone.toml")
    assert planned("plan")[2] == "kt-study: study.toml: this link leads nowhere (gone.toml); correct or remove it\n"


@pytest.mark.parametrize("name", ["study.toml", "val", "kt-study.db", "cache"])
def test_links_to_themselves_are_named_wherever_they_are(tmp_path: Path, planned: Planned, name: str) -> None:
    if name != "study.toml":
        write_study(tmp_path, FOLDER, *FOUR)
    if name != "val":
        classes(tmp_path / "val")
    (tmp_path / name).symlink_to(name)
    code, out, err = planned("plan")
    assert (code in (2, 3), out) == (True, ""), err
    assert str(tmp_path / name) in err
    assert err.count("\n") == 1


def test_a_damaged_file_of_results_is_named(tmp_path: Path, planned: Planned) -> None:
    part = tmp_path / "r" / "jobs" / "s" / "part-00000.parquet"
    part.parent.mkdir(parents=True)
    part.write_text("junk")
    code, _, err = planned("report", "--results", "r")
    assert (code, err.count("\n")) == (2, 1)
    assert "r/jobs: a file in it is damaged, or not one of kt-study's (" in err
    assert err.endswith("); move the folder away and run `kt-study collect` again\n")


@pytest.mark.parametrize("name", ["out", "results"])
def test_names_on_the_command_line_that_are_not_utf8(tmp_path: Path, planned: Planned, name: str) -> None:
    write_study(tmp_path, FOLDER, *FOUR)
    open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True).add_study("x", {})
    command = {"out": "collect", "results": "report"}[name]
    code, _, err = planned(command, f"--{name}", latin1("café"))
    assert (code in (2, 3), err.count("\n")) == (True, 1), err


@pytest.mark.parametrize(
    "arguments", [("plan",), ("status",), ("query", "success-rate"), ("report", "--results", "r"), ("doctor",)]
)
def test_a_deleted_working_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", ["kt-study", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "kt-study: the working folder has been deleted; change to one that exists\n")


@pytest.mark.parametrize(
    ("trees", "told"),
    [
        (
            ("val/images",),
            "{val}: one class folder, 'images', and in it 2 folders (ant, bee): the classes lie deeper; set [da",
        ),
        (
            ("val/a/b",),
            "{val}: one class folder, 'a/b', and in it 2 folders (ant, bee): the classes lie deeper; set [datas",
        ),
        (
            ("train/images", "val"),
            "{train}: one class folder, 'images', and in it 2 folders (ant, bee): the classes lie de",
        ),
        (
            ("train/train", "val/val"),
            "{train}: one class folder, 'train', and in it 2 folders (ant, bee): the classes lie",
        ),
        (
            ("val/train", "val/test"),
            "{val}: its folders are splits (test, train), and the classes lie in them; set [datase",
        ),
    ],
)
def test_a_class_tree_that_lies_deeper(tmp_path: Path, planned: Planned, trees: tuple[str, ...], told: str) -> None:
    for tree in trees:
        classes(tmp_path / tree)
    train = 'train = "train"\n' if any(tree.startswith("train") for tree in trees) else ""
    write_study(tmp_path, FOLDER, train, *FOUR)
    code, _, err = planned("plan")
    assert code == 2
    assert told.format(train=tmp_path / "train", val=tmp_path / "val") in err
    if train or "splits" in told:
        return
    advised = err.rpartition(" to ")[2].strip()
    write_study(tmp_path, FOLDER.replace('"val"', f'"{advised}"'), *FOUR)
    code, _, err = planned("plan", "--dry-run", "--pairs", "0")
    assert (code, err) == (0, "")


def test_folders_within_class_folders_stay_what_they_are(tmp_path: Path, planned: Planned) -> None:
    for name in ("ant/red/1.png", "ant/black/1.png", "bee/1.png"):
        draw(tmp_path / "val" / name)
    write_study(tmp_path, FOLDER, *FOUR)
    assert planned("plan", "--dry-run")[0] == 0


def test_a_data_set_of_one_class(tmp_path: Path, planned: Planned) -> None:
    classes(tmp_path / "val", "ant")
    write_study(tmp_path, FOLDER, *FOUR)
    code, _, err = planned("plan")
    assert code == 2
    assert (
        "data set 'imagefolder' has one class, 'ant', with 2 samples in val: nothing can be told apart; correct" in err
    )


SYNSETS = ("n01440764", "n01443537", "n01484850")
NET = "from torch import nn\n\n\ndef net(n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, n))\n"
SORTED = (
    'the 3 class folders are numbered as ImageNet\'s 1,000 classes: for 3 classes, set [dataset] classes = "sorted"\n'
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_classes": 3, "factory": "mine:net", "arguments": {"n": 3}}, "model 'own' has 3 outputs, data set 'ima"),
        (
            {"factory": "mine:net", "arguments": {"n": 3}},
            "factory 'mine:net' gives outputs of shape [1, 3] for one image",
        ),
        (
            {"checkpoint": "three.pth", "timm": "test_resnet"},
            "does not fit: 2 of another shape (fc.weight (3, 96) for (10",
        ),
    ],
)
def test_a_model_of_three_classes_on_three_of_imagenets(
    tmp_path: Path, planned: Planned, changes: dict[str, Any], told: str
) -> None:
    classes(tmp_path / "val", *SYNSETS)
    (tmp_path / "mine.py").write_text(NET)
    save_resnet(tmp_path / "three.pth", classes=3)
    own = model_table("own", **{"timm": None, "random_weights": None if "checkpoint" in changes else True, **changes})
    write_study(tmp_path, FOLDER, own, FOUR[0])
    code, _, err = planned("plan")
    assert code == 2
    assert told in err
    assert err.endswith(SORTED)
    write_study(tmp_path, FOLDER, 'classes = "sorted"\n', own, FOUR[0])
    code, _, err = planned("plan", "--dry-run", "--pairs", "0")
    assert code == 0, err


@pytest.mark.parametrize("name", ["token", "timm", "worker"])
def test_a_factory_in_a_file_with_a_name_that_is_taken(tmp_path: Path, planned: Planned, name: str) -> None:
    classes(tmp_path / "val")
    (tmp_path / f"{name}.py").write_text("def net(): pass\n")
    write_study(tmp_path, FOLDER, *FOUR, model_table("own", timm=None, factory=f"{name}:net"))
    code, _, err = planned("plan")
    assert code == 2
    assert f"correct `factory` or `arguments`; {tmp_path}/{name}.py is hidden by /" in err
    assert err.endswith(": rename it\n")


@pytest.mark.parametrize("n", [4, 1])
def test_a_factory_of_another_number_of_outputs_is_refused_before_it_is_run(
    tmp_path: Path, planned: Planned, n: int
) -> None:
    classes(tmp_path / "val")
    (tmp_path / "mine.py").write_text(NET)
    write_study(tmp_path, FOLDER, FOUR[0], model_table("own", timm=None, factory="mine:net", arguments={"n": n}))
    code, _, err = planned("plan")
    assert (code, f"gives outputs of shape [1, {n}] for one image, and 2 classes need [1, 2]; correct" in err) == (
        2,
        True,
    )


UNREADABLE = {
    "val": "{val}: Permission denied; ask its owner for permission to read it and to enter the folders above it",
    "val/ant": "{val}/ant: Permission denied; ask its owner",
    "study.toml": "study.toml: cannot be read: Permission denied",
    "weights/own.pth": "{weights}/own.pth: Permission denied; ask its owner",
    "weights": "{weights}/own.pth: Permission denied; ask its owner",
    "cache": "{cache}/digests.json: Permission denied; ask its owner",
}


def test_what_another_account_keeps_to_itself_is_named() -> None:
    with folder_of(ALICE) as home:
        folders = [home / str(number) for number in range(len(UNREADABLE))]
        for folder, name in zip(folders, UNREADABLE, strict=True):
            classes(folder / "val")
            (folder / "weights").mkdir()
            (folder / "cache").mkdir()
            save_resnet(folder / "weights" / "own.pth", classes=2)
            write_study(folder, FOLDER, FOUR[0], model_table("own", random_weights=None, checkpoint="weights/own.pth"))
            (folder / name).chmod(0)
        seen = BOB.kt_study_in_each(folders, "plan", "--dry-run")
        for folder, (code, said), told in zip(folders, seen, UNREADABLE.values(), strict=True):
            assert code in (2, 3), said
            (line,) = said.splitlines()
            assert told.format(**{name: folder / name for name in ("val", "weights", "cache")}) in line
