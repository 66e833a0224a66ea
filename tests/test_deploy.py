"""What the scripts of `deploy/` and of the documentation do, with stand-ins for the cluster's programs."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # seconds
STAND_INS = {
    # Runs one process of the step, which signals to the step reach.
    "srun": 'while [[ "$1" == -* ]]; do shift; done\nexec "$@"',
    "scontrol": 'echo "$@" >> "$CALLS/scontrol"',
    # Writes what a run folder then holds: paused by SIGTERM a checkpoint, ended its results.
    "fedjax-rec": """echo "$@" >> "$CALLS/fedjax-rec"
folder=$RUN
for argument in "$@"; do [ "$before" = --pause-exit-code ] && status=$argument; before=$argument; done
mkdir -p "$folder/checkpoints"
touch "$folder/checkpoints/.lock"
pause() { mkdir -p "$folder/checkpoints/train/round-00000002"; exit "${status:-0}"; }
case "$ACT" in
  pause) trap pause TERM; echo $$ > "$CALLS/started"; while true; do sleep 0.05; done ;;
  kill) kill -9 $$ ;;
  refuse) exit 2 ;;
  end) touch "$folder/result.json" ;;
esac""",
}


class Ended(NamedTuple):
    """A job that ended."""

    status: int
    said: str
    command: str  # `run`, `resume`, or nothing where none was started
    requeued: bool


class Cluster(NamedTuple):
    """The stand-ins, the script of a job, and the folder of its run."""

    root: Path
    run: Path
    script: str
    shell: tuple[str, ...]

    def start(self, act: str) -> Ended:
        """The job, as often as it is started anew: `act` is what its run does."""
        calls = self.root / f"calls-{len(list(self.root.glob('calls-*')))}"
        calls.mkdir()
        environment = {
            **os.environ,
            "PATH": f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "RUN": str(self.run),
            "ACT": act,
            "SLURM_JOB_ID": "7",
            "JOB_COMPLETION_INDEX": "0",
        }
        environment.pop("RUN_FOLDER", None)
        job = subprocess.Popen(  # noqa: S603 - of this project
            [*self.shell, self.script, "job", "--dataset", "FILE"],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        if act == "pause":
            self._signal(job, calls / "started")
        said, _ = job.communicate(timeout=PATIENCE)
        started = calls / "fedjax-rec"
        command = started.read_text(encoding="utf-8").split()[0] if started.exists() else ""
        asked = calls / "scontrol"
        requeued = asked.exists() and asked.read_text(encoding="utf-8") == "requeue 7\n"
        return Ended(job.returncode, said, command, requeued)

    def _signal(self, job: subprocess.Popen, started: Path) -> None:
        """As SLURM does before the time is up: the shell alone with `B:`, else the step."""
        end = time.monotonic() + PATIENCE
        while not (started.exists() and started.read_text(encoding="utf-8").strip()):
            assert time.monotonic() < end
            assert job.poll() is None
            time.sleep(0.02)
        is_of_shell = re.search(r"^#SBATCH .*--signal=B:", self.script, re.MULTILINE)
        number = job.pid if is_of_shell else int(started.read_text(encoding="utf-8"))
        os.kill(number, signal.SIGTERM)


def _script(name: str) -> str:
    if name == "slurm.sh":
        return (PROJECT / "deploy/slurm.sh").read_text(encoding="utf-8")
    if name == "performance.md":
        text = (PROJECT / "docs/performance.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        return next(block for block in blocks if "#SBATCH" in block)
    jobs = yaml.safe_load((PROJECT / "deploy/jobset.yaml").read_text(encoding="utf-8"))
    pod = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return pod["containers"][0]["args"][0]


@pytest.fixture(params=["slurm.sh", "performance.md", "jobset.yaml"])
def cluster(request, tmp_path):
    """Of each script that starts a run or goes on with it."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
    folder = {"slurm.sh": "runs/slurm-7", "performance.md": "RUN", "jobset.yaml": "runs/one"}[request.param]
    script = _script(request.param).replace("/runs/one", str(tmp_path / "runs/one"))
    shell = ("sh", "-c") if request.param == "jobset.yaml" else ("bash", "-c")
    return Cluster(tmp_path, tmp_path / folder, script, shell)


def test_a_job_is_started_until_its_run_is_done(cluster):
    """Killed before its first checkpoint, paused twice, refused once, ended, and then started in vain."""
    is_slurm = "scontrol" in cluster.script
    killed = cluster.start("kill")
    assert killed.status in (137, -signal.SIGKILL)  # of a shell, or of what took its place
    assert (killed.command, killed.requeued) == ("run", False)
    assert [path.name for path in (cluster.run / "checkpoints").iterdir()] == [".lock"]
    paused = cluster.start("pause")
    assert (paused.status, paused.command, paused.requeued) == (75, "run", is_slurm)
    paused = cluster.start("pause")
    assert (paused.status, paused.command, paused.requeued) == (75, "resume", is_slurm)
    refused = cluster.start("refuse")
    assert (refused.status, refused.command, refused.requeued) == (2, "resume", False)
    ended = cluster.start("end")
    assert (ended.status, ended.command, ended.requeued) == (0, "resume", False)
    done = cluster.start("end")
    assert (done.status, done.command, done.requeued) == (0, "", False)
    assert "is done" in done.said


def test_the_header_of_the_batch_script_names_a_command_that_works():
    """`--out` is the script's own."""
    text = _script("slurm.sh")
    submitted = [line for line in text.splitlines() if line.startswith("#") and "sbatch deploy" in line]
    assert len(submitted) == 2
    assert not any("--out" in line for line in submitted)
    assert "#SBATCH --requeue" in text


def test_a_paused_pod_is_not_counted_as_a_failure():
    """The exit status that the pods are given is the one that restarts them."""
    jobs = yaml.safe_load((PROJECT / "deploy/jobset.yaml").read_text(encoding="utf-8"))
    [rule] = jobs["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    [on_exit] = job["podFailurePolicy"]["rules"]
    assert on_exit["onExitCodes"]["values"] == [75]
    assert _script("jobset.yaml").count("--pause-exit-code 75") == 2
    assert on_exit["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
