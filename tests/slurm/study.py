"""A study folder and a database for the tests on the cluster, driven through the command line as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kt_study.store import JobRow, JobStore, open_store
from tests.slurm.dev_cluster import DevCluster
from tests.untrained import untrained_mixer

ZOO = """
[study]
name = "{name}"
[dataset]
kind = "digits"
[models]
universe = "digits-zoo"
include = {zoo}
{models}
[complementarity]
pairs = 6
models = 3
[transfer]
pairs = 2
objectives = {objectives}
students = ["mixer-*"]
teachers = ["digits/*"]
epochs = {epochs}
batch_size = 32
lr = 1e-3
views = 1
augment = "none"
"""

UNTRAINED = """
[study]
name = "{name}"
[dataset]
kind = "digits"
{models}
[complementarity]
pairs = 2
models = 2
[transfer]
pairs = {pairs}
objectives = ["kl", "kl_dp"]
epochs = {epochs}
batch_size = 32
lr = 1e-3
views = 1
augment = "none"
"""


_SLOW_MODELS = '''
"""A student that pauses in every training step: what is done to it in the middle does not depend on a machine's speed."""
import os
import time

from worker import zoo

PAUSES = {pauses}


def mixer(num_classes, pause_s, **sizes):
    model = zoo.mixer(num_classes, **sizes)
    if not PAUSES:
        return model
    pause_s = float(os.environ.get("PAUSE_S", pause_s))
    model.register_forward_pre_hook(lambda module, _inputs: time.sleep(pause_s if module.training else 0.0))
    return model
'''


def _model(number: int, pause_s: float) -> str:
    return untrained_mixer(
        f"mixer-{number}", width=24 + 8 * number, blocks=3, factory="slow_models:mixer", pause_s=pause_s
    )


def untrained_study(name: str, *, models: int = 4, pairs: int = 6, epochs: int = 6, pause_s: float = 0.0) -> str:
    """Models with random weights: nothing has to be trained before the transfers, whose 17 steps an epoch pause."""
    tables = "".join(_model(number, pause_s) for number in range(models))
    return UNTRAINED.format(name=name, models=tables, pairs=pairs, epochs=epochs)


def zoo_study(
    name: str,
    *,
    epochs: int,
    pause_s: float,
    zoo: tuple[str, ...] = ("digits/resnet_b", "digits/mixer_a"),
    objectives: tuple[str, ...] = ("kl", "kl_dp"),
) -> str:
    """Three models: those of the digits zoo, which are trained first, teach the slow students."""
    models = "".join(_model(number, pause_s) for number in range(3 - len(zoo)))
    lists = {"zoo": json.dumps(zoo), "objectives": json.dumps(objectives)}
    return ZOO.format(name=name, epochs=epochs, models=models, **lists)


@dataclass(kw_only=True)
class ClusterStudy:
    """One study; `cluster` is None for a study that runs on this machine."""

    folder: Path
    url: str
    cluster: DevCluster | None = None
    variables: dict[str, str] = field(default_factory=dict)  # of the environment, for commands and workers
    background: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, text: str, *, pauses: bool = True) -> None:
        """The study file, and the module of its slow models; without pauses they are not slow, and otherwise the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "study.toml").write_text(text)
        (self.folder / "slow_models.py").write_text(_SLOW_MODELS.format(pauses=pauses))

    @property
    def environment(self) -> dict[str, str]:
        import os

        inherited = self.cluster.environment if self.cluster else dict(os.environ)
        return {**inherited, "KT_STUDY_DB": self.url, "OMP_NUM_THREADS": "1", **self.variables}

    def run(
        self, *arguments: str, timeout: float = 240, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kt_study", *arguments],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def succeeds(self, *arguments: str, timeout: float = 240) -> str:
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def refused(self, *arguments: str, code: int = 3) -> str:
        """The one line with which a command refuses."""
        done = self.run(*arguments)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command in the background; its output goes to a file, since nobody empties a pipe."""
        with self._output(arguments[0]).open("a") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "kt_study", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.background.append(process)
        return process

    def said(self, command: str) -> str:
        return self._output(command).read_text()

    def _output(self, command: str) -> Path:
        """Beside the study folder, as a terminal is: what happens to the one does not happen to the other."""
        return self.folder.with_name(f"{self.folder.name}-{command}.out")

    @property
    def store(self) -> JobStore:
        return open_store(self.url)

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode in (0, 1), done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen

    def jobs(self) -> list[JobRow]:
        store = self.store
        return [store.job(row.id) for row in store.jobs()]

    def wait_until(self, condition: Callable[[JobStore], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        store = self.store
        while not condition(store):
            assert time.monotonic() < deadline, f"{what} did not happen in {seconds:.0f} s\n{self.state()}"
            time.sleep(0.5)

    def state(self) -> str:
        logs = sorted(self.folder.glob("logs/*/*log.out"))
        tails = [f"{path.name}: {' / '.join(path.read_text().splitlines()[-3:])}" for path in logs]
        asked = (("sinfo", "--Node", "--format=%N %T %E"), ("squeue", "--format=%i %j %T %r %N"))
        cluster = [self.cluster.try_run(*argv).stdout for argv in asked] if self.cluster else []
        return "\n".join([self.run("status").stdout, *cluster, *tails, *map(self.said_of, self.background)])

    @staticmethod
    def said_of(process: subprocess.Popen[str]) -> str:
        return f"{process.args}: {process.poll()}"

    def end(self) -> None:
        """Cancel whatever is left."""
        for process in self.background:
            if process.poll() is None:
                process.kill()
            process.wait()
        if self.cluster:
            names = {row["name"] for row in self._launches()}
            for name in names:
                self.cluster.try_run("scancel", "--name", name)

    def _launches(self) -> list[dict[str, str]]:
        found = [json.loads(path.read_text()) for path in self.folder.glob(".kt-study/launches/*.json")]
        return [{"name": f"kt-{record['study']}-{record['token']}"} for record in found]
