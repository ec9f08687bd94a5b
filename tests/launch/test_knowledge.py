"""What kt-study makes of Slurm's answers. No cluster: texts as Slurm 22.05 writes them, and scripts in its place."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_study.database import parse_url
from kt_study.errors import DatabaseError, SlurmError, UsageError
from kt_study.pilots import LaunchFiles, PilotOptions, Probe, ProbeExit
from orchestrator.cli.commands.launch import url_for_workers
from orchestrator.cluster.launch import submission
from orchestrator.cluster.launch.private import prepare_study_folder, require_reachable
from orchestrator.cluster.launch.records import failed_nodes
from orchestrator.cluster.launch.request import SlurmRequest, completed_request, read_request
from orchestrator.cluster.launch.submission import Package
from orchestrator.cluster.slurm import listing
from orchestrator.cluster.slurm.cluster import Cluster, Node, Partition, count_gpus, minutes, read_cluster
from orchestrator.cluster.slurm.commands import environment, error_text, run
from orchestrator.cluster.slurm.endings import bad_nodes, failure
from orchestrator.cluster.slurm.listing import Run
from orchestrator.cluster.slurm.view import DaemonState, current_view
from orchestrator.terminal.study_context import StudyContext

HOME = Path(__file__).parents[2]


def script(folder: Path, name: str, lines: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:00", 90), ("1:30:00", 90), ("2-0", 2880), ("1-02:30", 1590), ("1-00:00:01", 1441), ("0:01", 1),
     ("UNLIMITED", 0)],
)  # fmt: skip
def test_lengths_of_time(text: str, expected: int) -> None:
    assert minutes(text) == expected


@given(st.integers(0, 60), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_length_of_time_is_rounded_up_to_minutes(days: int, hours: int, mins: int, seconds: int) -> None:
    exact = ((days * 24 + hours) * 60 + mins) * 60 + seconds
    assert 0 <= minutes(f"{days}-{hours:02d}:{mins:02d}:{seconds:02d}") * 60 - exact < 60


def test_no_length_of_time() -> None:
    with pytest.raises(SlurmError, match="4h"):
        minutes("4h")


def test_complaints_are_one_line_without_the_programs_name() -> None:
    said = (
        "sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert error_text(said) == (
        "invalid partition specified: nowhere; Batch job submission failed: Invalid partition name specified"
    )
    advice = (
        "sbatch: error: Please give an account (see the wiki)\nsbatch: error: Unspecified error\nsbatch: retrying\n"
    )
    assert error_text(advice + advice) == "Please give an account (see the wiki); Unspecified error"
    assert error_text("one\nlast words\n") == "last words"
    assert error_text("allocation failure: Invalid qos specification") == "Invalid qos specification"
    assert error_text("") == ""


def test_commands_that_are_missing_fail_or_hang(bin_folder: Path) -> None:
    with pytest.raises(SlurmError, match="there is no squeue-of-old here"):
        run("squeue-of-old")
    script(bin_folder, "squeue", "echo 'squeue: error: Zero Bytes were transmitted or received' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^squeue: Zero Bytes were transmitted or received$"):
        listing.queue()
    script(bin_folder, "sinfo", "exec sleep 30")
    with pytest.raises(SlurmError, match="sinfo did not answer within 0 s"):
        run("sinfo", timeout_s=0.3)


def test_neither_secrets_nor_our_own_allocation_reach_a_batch_job(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "KT_STUDY_DB": "postgresql://u:secret@h/d", "PGPASSWORD": "secret", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "7",
        "SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "debug", "SBATCH_MAIL_USER": "me", "HOME_OF_MINE": "/x",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    kept = environment(["partition", "time"])
    assert {name for name in given if name in kept} == {"SLURM_CONF", "SBATCH_MAIL_USER", "HOME_OF_MINE"}


OVERRIDING = ("TIMELIMIT", "MEM_PER_NODE", "MEM_PER_CPU", "SIGNAL", "REQUEUE", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "ERROR",
              "ARRAY_INX", "GPUS", "GPUS_PER_NODE", "CPUS_PER_GPU", "PARTITION", "RESERVATION", "WAIT", "WCKEY")  # fmt: skip


def test_the_users_defaults_for_sbatch_do_not_change_what_we_ask_for(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch's variables win over a script, so --test-only must be as free of them as the sbatch that follows."""
    for name in OVERRIDING:
        monkeypatch.setenv(f"SBATCH_{name}", "7")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    request = SlurmRequest(
        partition="gpu", mem="4G", cpus_per_task=2, gpus_per_node=0, time=60, sbatch={"reservation": "course"}
    )
    package = Package(options=PilotOptions(root=str(tmp_path)), request=request, name="kt-s-t", allocations=1)
    script(bin_folder, "srun", "true")
    script(bin_folder, "sbatch", f"env | grep ^SBATCH_ > {tmp_path}/seen; echo Submitted batch job 5")
    submission.check(package)
    assert (tmp_path / "seen").read_text() == "SBATCH_ACCOUNT=mine\n"
    (tmp_path / "seen").unlink()
    assert submission.send(package) == "5"
    assert (tmp_path / "seen").read_text() == "SBATCH_ACCOUNT=mine\n"


def test_nothing_in_the_users_environment_hides_jobs_from_us(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hiding = {"SQUEUE_STATES", "SQUEUE_PARTITION", "SACCT_FORMAT", "SCANCEL_INTERACTIVE"}
    for name in hiding:
        monkeypatch.setenv(name, "x")
    script(bin_folder, "squeue", f"env > {tmp_path}/seen")
    listing.queue()
    seen = {line.partition("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert "SLURM_TIME_FORMAT" in seen
    assert not hiding & seen


def test_hidden_partitions_are_asked_for(bin_folder: Path, tmp_path: Path) -> None:
    for name in ("squeue", "scontrol"):
        script(bin_folder, name, f'echo {name} "$@" >> {tmp_path}/calls')
    listing.queue()
    read_cluster()
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    asked = [call for call in calls if "config" not in call]
    assert len(asked) == 3
    assert all("--all" in call for call in asked), calls


def test_the_cluster_is_read_from_scontrol(bin_folder: Path) -> None:
    script(
        bin_folder,
        "scontrol",
        """case "$*" in
*config) echo 'KillWait                = 30 sec'; echo 'MaxArraySize            = 4001';;
*partition) echo 'PartitionName=gpu Default=YES DefaultTime=NONE MaxTime=2-00:00:00 State=UP TotalNodes=2'
            echo 'PartitionName=old Default=NO DefaultTime=00:10:00 MaxTime=UNLIMITED State=DOWN TotalNodes=1';;
*node) echo 'NodeName=a1 CPUTot=64 Gres=gpu:a100:4(S:0-1),gpu:t4:2,craynetwork:4 NodeAddr=10.0.0.1 NodeHostName=a1' \\
            'RealMemory=515000 Partitions=gpu,old'
       echo 'NodeName=a2 CPUTot=8 Gres=(null) NodeAddr=a2 NodeHostName=a2 RealMemory=16000 Partitions=gpu';;
esac""",
    )
    cluster = read_cluster()
    assert (cluster.largest_array, cluster.kill_wait_s) == (4001, 30)
    gpu = cluster.partition("")
    assert (gpu.name, gpu.longest_min, gpu.is_up) == ("gpu", 2880, True)
    assert [(node.name, node.gpus, node.cpus) for node in cluster.nodes_of(gpu)] == [("a1", 6, 64), ("a2", 0, 8)]
    assert not cluster.partition("old").is_up
    with pytest.raises(
        SlurmError, match=r"no partition 'gpus' on this cluster; did you mean 'gpu'\? \(--partition may be gpu, old"
    ):
        cluster.partition("gpus")


CLUSTER = Cluster(
    partitions=(
        Partition(name="gpu", is_default=True, is_up=True, longest_min=120),
        Partition(name="long", is_default=False, is_up=True, longest_min=0),
    ),
    nodes=tuple(
        Node(name=name, host=name, address=f"10.0.0.{n}", cpus=16, memory_mib=64_000, gpus=4, partitions=partitions)
        for n, (name, partitions) in enumerate({"a1": ("gpu",), "a2": ("gpu", "long")}.items(), 1)
    ),
    largest_array=1001,
    kill_wait_s=30,
)


def test_a_request_takes_its_gaps_from_the_cluster() -> None:
    wanted = completed_request(SlurmRequest(), CLUSTER, "auto")
    assert (wanted.partition, wanted.time_min, wanted.gpus_per_node, wanted.pilots_each) == ("gpu", 120, 1, 1)
    assert completed_request(SlurmRequest(), CLUSTER, "cpu").gpus_per_node == 0
    shared = completed_request(SlurmRequest(gpus_per_node=2, workers_per_gpu=3), CLUSTER, "auto")
    assert shared.pilots_each == 6


def test_fake_gpus_are_not_asked_for_and_work_on_them_is_refused_with_the_option_that_works() -> None:
    fake = tuple(msgspec.structs.replace(node, has_fake_gpus=True) for node in CLUSTER.nodes)
    everywhere = msgspec.structs.replace(CLUSTER, nodes=fake)
    assert completed_request(SlurmRequest(), everywhere, "auto").gpus == 0
    for request, device in ((SlurmRequest(), "cuda"), (SlurmRequest(gpus_per_node=1), "auto")):
        with pytest.raises(SlurmError, match=r"GPUs of partition 'gpu' are fake .*; launch with --device cpu$"):
            completed_request(request, everywhere, device)
        assert completed_request(request, everywhere, "cpu").gpus == request.gpus
    mixed = msgspec.structs.replace(CLUSTER, nodes=(fake[0], CLUSTER.nodes[1]))
    assert completed_request(SlurmRequest(), mixed, "auto").gpus == 1


def test_of_several_partitions_the_shortest_limit_counts(tmp_path: Path) -> None:
    wanted = completed_request(SlurmRequest(partition="long,gpu"), CLUSTER, "auto")
    assert (wanted.partition, wanted.time_min) == ("long,gpu", 120)
    assert completed_request(SlurmRequest(partition="long"), CLUSTER, "auto").time_min == 240
    both = CLUSTER.nodes_of(*CLUSTER.partitions_of(wanted.partition))
    assert [node.name for node in both] == ["a1", "a2"]
    package = Package(options=PilotOptions(root=str(tmp_path)), request=wanted, name="kt-s-t", allocations=1)
    assert package.parameters()["partition"] == "long,gpu"


def test_gpus_of_a_type_or_among_generic_resources(tmp_path: Path) -> None:
    typed = completed_request(read_request(None, {"gpus_per_node": "a100:2"}), CLUSTER, "auto")
    generic = completed_request(read_request(None, {"gres": "gpu:a100:3,tmpdisk:900"}), CLUSTER, "auto")
    assert [(each.gpus, each.pilots_each) for each in (typed, generic)] == [(2, 2), (3, 3)]
    asked = [
        Package(options=PilotOptions(root=str(tmp_path)), request=each, name="kt-s-t", allocations=1).parameters()
        for each in (typed, generic)
    ]
    assert (asked[0]["gpus_per_node"], "gres" in asked[0]) == ("a100:2", False)
    assert (asked[1]["gres"], "gpus_per_node" in asked[1]) == ("gpu:a100:3,tmpdisk:900", False)
    assert completed_request(read_request(None, {"gpus_per_node": "0"}), CLUSTER, "auto").gpus == 0
    with pytest.raises(UsageError, match="gpus_per_node"):
        read_request(None, {"gpus_per_node": "many"})


def test_a_profile_may_hand_any_other_option_to_sbatch(bin_folder: Path, tmp_path: Path) -> None:
    profile = tmp_path / "site.toml"
    profile.write_text(
        'mem = 16000\ncpus_per_task = 4\n[sbatch]\nreservation = "course"\nmail_type = "FAIL"\nexclusive = true\nhold = false\n'
    )
    request = completed_request(read_request(profile, {}), CLUSTER, "auto")
    package = Package(options=PilotOptions(root=str(tmp_path)), request=request, name="kt-s-t", allocations=1)
    script(bin_folder, "srun", "true")
    lines = submission.script(package).splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"mem=16000", "reservation=course", "mail-type=FAIL", "exclusive", "requeue", "cpus-per-task=4"} <= asked
    assert not any("hold" in option for option in asked)
    assert any(re.match(r"srun .*--cpus-per-task=4 ", line) for line in lines), "srun does not inherit it since 22.05"
    for key, why in (("time", "a key of the profile"), ("open_mode", "kt-study decides it")):
        profile.write_text(f'[sbatch]\n{key} = "1"\n')
        with pytest.raises(UsageError, match=why):
            read_request(profile, {})


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:4", 4), ("gpu", 1), ("gpu:a100", 1), ("(null)", 0), ("", 0), ("gpu:a100:no_consume:4", 4),
        ("gpu:no_consume:4", 4), ("gpu:h100:8(S:0,1),tmpdisk:900G", 8), ("craynetwork:4,gpu:2", 2),
        ("gpu:nvidia_a100_80gb_pcie_1g.10gb:7", 7), ("gpu:a100:2,gpu:t4:1", 3),
    ],
)  # fmt: skip
def test_gpus_of_a_node(gres: str, gpus: int) -> None:
    assert count_gpus(gres) == gpus


def test_what_anybody_wrote_into_a_comment_does_not_move_a_node(bin_folder: Path) -> None:
    node = "NodeName=n1 CPUTot=4 Gres=gpu:4 Partitions=gpu,gpu2 Comment=moved from Partitions=old CPUTot=9"
    script(bin_folder, "scontrol", f"case $* in *node) echo '{node}';; esac")
    (found,) = read_cluster().nodes
    assert (found.partitions, found.cpus) == (("gpu", "gpu2"), 4)


@pytest.mark.parametrize(
    ("row", "state", "code", "signal", "started_at", "is_over"),
    [
        ("12_[0-3%2]|kt-s-aa|PENDING|0:0|None assigned|1700000000|Unknown|Unknown", "PENDING", 0, 0, 0.0, False),
        ("12_0|kt-s-aa|CANCELLED by 0|0:0|None assigned|1700000000|None|1700000100", "CANCELLED", 0, 0, 0.0, True),
        (
            "12_1|kt-s-aa|CANCELLED by 1000|0:15|n1|1700000000|1700000050|1700000100",
            "CANCELLED",
            0,
            15,
            1.7e9 + 50,
            True,
        ),
        ("12|kt-s-aa|NODE_FAIL|1:0|n1|1|2|3", "NODE_FAIL", 1, 0, 2.0, True),
        (
            "12_2|kt-s-aa|OUT_OF_MEMORY|0:125|n1|1700000000|1700000050|Unknown",
            "OUT_OF_MEMORY",
            0,
            125,
            1.7e9 + 50,
            False,
        ),
    ],
)
def test_rows_of_sacct(
    row: str, state: str, code: int, signal: int, started_at: float, is_over: bool, bin_folder: Path
) -> None:
    script(bin_folder, "sacct", f"echo '{row}'")
    (run_,) = listing.runs(["kt-s-aa"], 0.0)
    assert (run_.state, run_.exit_code, run_.signal, run_.started_at) == (state, code, signal, started_at)
    assert (run_.is_over, run_.token, run_.node == "") == (is_over, "aa", "None assigned" in row)


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        ({"partition": "cpu"}, "no partition 'cpu'"),
        ({"time": "3:00:00"}, "allows 120 min at most, and --time asks for 180"),
        ({"gpus_per_node": 5}, "has 5 GPUs, the largest has 4"),
        ({"cpus_per_task": 9, "gpus_per_node": 2}, "has 18 cores, the largest has 16"),
        ({"mem": "1T"}, "has 1048576 MiB of memory"),
        ({"mem": "much"}, "cannot read --mem 'much'"),
        ({"mem": 65000}, "has 65000 MiB of memory"),
        ({"gpus_per_node": "a100:5"}, "has 5 GPUs, the largest has 4"),
        ({"gres": "gpu:a100:5"}, "has 5 GPUs, the largest has 4"),
        ({"time": "UNLIMITED"}, "--time must be longer than 0 and finite, .* 'gpu' allows 120 min at most"),
        ({"time": "0"}, "--time must be longer than 0 and finite"),
        ({"time": 0}, "--time must be longer than 0 and finite"),
        ({"partition": "long", "time": "UNLIMITED"}, "finite, .* partition 'long' has no limit of its own"),
        ({"partition": "gpu,cpu"}, "no partition 'cpu'"),
        ({"partition": "long,gpu", "time": "3:00:00"}, "'gpu' allows 120 min at most, and --time asks for 180"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused_at_once(request_: dict[str, object], line: str) -> None:
    with pytest.raises(SlurmError, match=line):
        completed_request(msgspec.convert(request_, SlurmRequest), CLUSTER, "auto")


def test_the_warning_leaves_room_for_work() -> None:
    assert [SlurmRequest(time=time_min).warning_s for time_min in (1, 5, 9, 240)] == [10, 50, 90, 90]


def test_flags_win_over_a_profile(tmp_path: Path) -> None:
    profile = tmp_path / "site.toml"
    profile.write_text('partition = "gpu"\ntime = "01:00:00"\nsetup = ["module load cuda"]\n')
    found = read_request(profile, {"partition": None, "time": "20", "mem": "4G"})
    assert (found.partition, found.time_min, found.mem, found.setup) == ("gpu", 20, "4G", ("module load cuda",))
    profile.write_text("partitions = 'gpu'\n")
    with pytest.raises(UsageError, match="partitions"):
        read_request(profile, {})
    with pytest.raises(UsageError, match="no such profile"):
        read_request(tmp_path / "none.toml", {})


def test_the_profile_that_we_ship_is_one() -> None:
    found = read_request(HOME / "slurm" / "example.toml", {})
    assert (found.partition, found.time_min, found.gpus_per_node) == ("gpu", 240, 1)


def ended(node: str, state: str, code: int = 0, signal: int = 0, job: str = "1_0") -> Run:
    at = float(next(_moments))
    return Run(
        job=job, name="kt-s-0", state=state, exit_code=code, signal=signal, node=node, submitted_at=0.0,
        started_at=at - 5, ended_at=at,
    )  # fmt: skip


_moments = itertools.count(1000)
PLACES = {"root": "/study", "python": "/venv/bin/python"}


def test_endings() -> None:
    assert failure(ended("a", "COMPLETED"), **PLACES) == ""
    assert failure(ended("a", "PREEMPTED", signal=15), **PLACES) == ""
    assert "/study is missing" in failure(ended("a", "FAILED", signal=53), **PLACES)
    assert "/study is missing" in failure(ended("a", "FAILED", ProbeExit.NO_STUDY), **PLACES)
    assert "/venv/bin/python" in failure(ended("a", "FAILED", ProbeExit.NO_PYTHON), **PLACES)
    assert "--mem" in failure(ended("a", "OUT_OF_MEMORY", signal=125), **PLACES)
    assert failure(ended("a", "FAILED", signal=9), **PLACES) == "the pilot ended by SIGKILL (FAILED)"
    for code, words in ((9, "by SIGKILL"), (137, "by SIGKILL"), (12, "by SIGUSR2"), (139, "by SIGSEGV"),
                        (1, "with exit code 1"), (75, "with exit code 75"), (127, "with exit code 127")):  # fmt: skip
        assert failure(ended("a", "FAILED", code), **PLACES) == f"the pilot ended {words} (FAILED)"
    unknown = msgspec.structs.replace(ended("a", "FAILED", 1), state="SOMETHING_NEW")
    assert failure(unknown, **PLACES) == ""


def test_a_node_on_which_pilots_keep_dying_is_left_out() -> None:
    dying = [ended("a", "FAILED", 1), ended("a", "NODE_FAIL"), ended("b", "FAILED", 1), ended("c", "PREEMPTED")]
    assert bad_nodes(dying, {}, **PLACES) == []
    dying.append(ended("a", "FAILED", signal=9))
    assert [(bad.node, bad.reason) for bad in bad_nodes(dying, {}, **PLACES)] == [
        ("a", "3 pilots died there: the pilot ended by SIGKILL (FAILED)")
    ]
    assert bad_nodes([*dying, ended("a", "COMPLETED")], {}, **PLACES) == []


def test_a_node_that_fails_its_probe_is_left_out_at_once_and_memory_is_no_fault_of_a_node() -> None:
    runs = [ended("a", "FAILED", ProbeExit.NO_PYTHON), *(ended("b", "OUT_OF_MEMORY") for _ in range(5))]
    assert [bad.node for bad in bad_nodes(runs, {}, **PLACES)] == ["a"]


def test_what_a_pilot_says_of_its_node_counts_until_another_can_work_there() -> None:
    first = Probe(node="a", slurm_job="1_0", error="no GPU")
    others = [Probe(node="b", slurm_job="1_1"), Probe(node="c", slurm_job="1_2", error="no database")]
    assert failed_nodes([first, *others]) == {"a": "no GPU", "c": "no database"}
    assert failed_nodes([first, *others, Probe(node="a", slurm_job="2_0")]) == {"c": "no database"}
    assert [bad.node for bad in bad_nodes([], {"c": "no database"}, **PLACES)] == ["c"]


SQUEUE = r"""echo call >> {calls}
printf '12_0|kt-demo-0a0b0c0d|RUNNING|None|node1|1700000000|1700003600|gpu\n'
printf '12_1|kt-demo-0a0b0c0d|PENDING|Priority||N/A|N/A|gpu\n'
printf '13|bash|RUNNING|None|node2|1700000000|1700003600|gpu\n'"""


def test_one_call_serves_everybody_for_a_while(bin_folder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script(bin_folder, "squeue", SQUEUE.format(calls=calls))
    script(bin_folder, "sacct", f"echo call >> {calls}; echo '12_0|kt-demo-0a0b0c0d|CANCELLED by 0|0:15|node1|1|2|3'")
    files = LaunchFiles(root=tmp_path)
    for _ in range(5):
        view = current_view(files, ["kt-demo-0a0b0c0d"], 0.0)
    assert len(calls.read_text().splitlines()) == 2
    assert [(job.job, job.is_pending, job.reason) for job in view.queue] == [
        ("12_0", False, "None"), ("12_1", True, "Priority")
    ]  # fmt: skip
    assert (view.queue[0].token, view.queue[0].ends_at) == ("0a0b0c0d", 1700003600.0)
    assert (view.runs[0].state, view.runs[0].signal, view.runs[0].is_over) == ("CANCELLED", 15, True)


def test_an_accounting_that_is_away_leaves_the_rest_and_is_asked_less(bin_folder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script(bin_folder, "squeue", SQUEUE.format(calls="/dev/null"))
    script(bin_folder, "sacct", "echo '12_0|kt-demo-0a0b0c0d|FAILED|1:0|node1|1|2|3'")
    files = LaunchFiles(root=tmp_path)
    current_view(files, ["kt-demo-0a0b0c0d"], 0.0)
    script(bin_folder, "sacct", f"echo call >> {calls}; echo 'sacct: error: Connection refused' >&2; exit 1")
    view = current_view(files, ["kt-demo-0a0b0c0d"], 0.0, fresh_s=0.0)
    assert len(view.queue) == 2
    assert [known.state for known in view.runs] == ["FAILED"]
    assert len(view.notes) == 1
    assert re.match(r"sacct: Connection refused; past runs are \d+ s old", view.notes[0])
    assert view.controller.error == ""


def test_who_does_not_answer_is_asked_less_and_less() -> None:
    now = 10_000.0
    waits = []
    for failures in range(6):
        answer = DaemonState(asked_at=now, failures=failures, error="away")
        waits.append(next(wait for wait in range(400) if answer.is_due(15.0, now + wait)))
    assert waits == [15, 30, 60, 120, 240, 300]
    assert DaemonState(asked_at=now).is_due(15.0, now - 1), "a clock that was set back"


def test_the_password_goes_to_a_private_file_and_nowhere_else(tmp_path: Path) -> None:
    files = LaunchFiles(root=tmp_path)
    first = prepare_study_folder(files, "postgresql://me:se:c\\ret@db.example:5433/study?sslmode=require")
    assert prepare_study_folder(files, "postgresql://me:se:c\\ret@db.example:5433/study?sslmode=require") == first
    url = PilotOptions(root=str(tmp_path)).database_url()
    assert "ret" not in url
    assert parse_url(url).conninfo["passfile"] == str(files.passfile)
    assert parse_url(url).conninfo["sslmode"] == "require"
    assert files.passfile.read_text() == "*:*:*:*:se\\:c\\\\ret\n"
    for path in (files.database, files.passfile, files.marker):
        assert path.stat().st_mode & 0o777 == 0o600


def test_other_secrets_of_a_url_reach_the_workers_by_the_private_file_alone(tmp_path: Path) -> None:
    url = "postgresql://me@db.example:5433/study?sslpassword=k%26ey&sslkey=/x/y"
    here = StudyContext(study_path=tmp_path / "study.toml", db_flag=url)
    assert url_for_workers(here) == "", "what submitit writes down holds none"
    files = LaunchFiles(root=tmp_path)
    assert parse_url(PilotOptions(root=str(tmp_path)).database_url()).conninfo["sslpassword"] == "k&ey"
    assert files.database.stat().st_mode & 0o777 == 0o600
    assert not files.passfile.exists()


def test_the_file_that_names_the_database_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="launch again"):
        PilotOptions(root=str(tmp_path)).database_url()


def test_a_database_on_the_loopback_is_refused_for_other_machines() -> None:
    nodes = CLUSTER.nodes
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(DatabaseError, match="this machine only, and pilots would run on a1"):
            require_reachable(parse_url(f"postgresql://u@{host}:5432/d"), nodes)
    require_reachable(parse_url("postgresql://u@db.example:5432/d"), nodes)
    here = [msgspec.structs.replace(node, address="127.0.0.1") for node in nodes]
    require_reachable(parse_url("postgresql://u@127.0.0.1:5432/d"), here)


def test_nodes_left_out_by_the_user_and_by_us_are_one_list() -> None:
    package = Package(
        options=PilotOptions(root="/study", token="t"),
        request=SlurmRequest(exclude="a[1-3]", time=60),
        name="kt-s-t",
        allocations=2,
        exclude=("b7",),
        marker="m",
    )
    chosen = package.parameters()
    assert chosen["exclude"] == "a[1-3],b7"
    assert (chosen["signal_delay_s"], chosen["time"], chosen["ntasks_per_node"]) == (90, 60, 1)
    assert "partition" not in chosen
