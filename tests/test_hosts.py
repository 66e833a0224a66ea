"""Several processes train as one does, refuse what differs, and end when one of them is gone."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
import yaml

import fedjax_rec as fr
from fedjax_rec.cli.main import build_parser, main
from fedjax_rec.cli.processes import check_alone
from fedjax_rec.cli.supervisor import pass_on_words, wants_supervisor
from fedjax_rec.compatibility.table import PAIRS
from fedjax_rec.errors import ParameterError
from fedjax_rec.hosts.processes import initialize_distributed
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.checkpoints.store import find_latest
from tests.cli.refusals import refusal
from tests.hosts import ODD, algorithm_on, copy_share, make_store, train, train_from_store
from tests.processes import user_environment

PROJECT = Path(__file__).resolve().parents[1]
LIMIT = 240  # seconds, on a machine where other tests run
LINES = "\n".join(f"{u},{(u * 7 + k * k) % 70}" for u in range(48) for k in range(12))


def _environment(devices: int) -> dict[str, str]:
    environment = user_environment()
    flags = f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**environment, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def start(tmp_path):
    """Starts a process whose words go to files; none outlives its test."""
    started: list[subprocess.Popen] = []

    def start(arguments: list[str], devices: int = 2) -> Started:
        words = [tmp_path / f"{name}-{len(started)}" for name in ("said", "errors")]
        with words[0].open("w") as said, words[1].open("w") as errors:
            process = subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, "-m", *arguments],
                env=_environment(devices),
                cwd=PROJECT,
                stdout=said,
                stderr=errors,
            )
        started.append(process)
        return Started(process, *words)

    yield start
    for process in started:
        process.kill()
        process.wait()


class Started(NamedTuple):
    """A process, and the files of what it says."""

    process: subprocess.Popen
    said: Path
    errors: Path

    def end(self) -> tuple[int, str, str]:
        """Its status and its words, once it has ended."""
        status = self.process.wait(timeout=LIMIT)
        return status, self.said.read_text(encoding="utf-8"), self.errors.read_text(encoding="utf-8")


def _check_same_run(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The bits of the state, and what validations say of it; mean losses are sums of floats."""
    assert found["bits"] == wanted["bits"]
    assert found["evaluations"] == wanted["evaluations"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def _check_alike(start: Any, tmp_path: Path, number: int) -> None:
    """So many processes with four devices in all get the bits of one with four."""
    alone = algorithm_on(fr.client_mesh(4))
    train(alone, tmp_path / "old", 2)
    straight = train(alone, tmp_path / "straight", 4)
    store, mesh = make_store(tmp_path / "store"), fr.client_mesh(number)
    stored = train_from_store(store, tmp_path / "stored straight", mesh)
    floats = train_from_store(store, None, mesh, 2, integers=False)
    for k in range(number):
        copy_share(store, tmp_path / f"share-{k}", number, k)

    address = _free_address()
    ids = range(number)
    arguments = [["tests.hosts", address, str(number), str(k), str(tmp_path)] for k in ids]
    ended = [one.end() for one in [start(each, 4 // number) for each in arguments]]
    assert [status for status, _, _ in ended] == [0] * number, ended
    found = [json.loads((tmp_path / f"found-{k}.json").read_text(encoding="utf-8")) for k in ids]

    for each in found:
        assert (each["processes"], each["devices"]) == (number, 4)
        assert each["exchanged"] == [{"text": "x" * 100 * k, "number": 0.1} for k in ids]
        assert each["from first"] == ODD.tobytes().hex()
        assert (each["of first"], each["refused by first"]) == ("told", "of process 0")
        assert each["other data"].startswith("process 1 (")
        assert "differs from process 0 (" in each["other data"]
        assert ": data_hash is '0c' there, not '5f'; " in each["other data"]
        assert ": seed is 1 there, not 0; " in each["other seed"]
        assert each["uneven"].startswith(f"devices=3 do not divide over {number} processes")
        # From the start, and from a checkpoint of one process.
        _check_same_run(each["new"], straight)
        _check_same_run(each["old"], straight)
        # From a store of which each had its share alone.
        _check_same_run(each["stored"], stored)
        _check_same_run(each["touched"], stored)
        assert each["floats"]["sums"] == pytest.approx(floats["sums"], rel=1e-5)
        if number == 2:  # two floats have one sum in any order
            _check_same_run(each["floats"], floats)

    # One process goes on from what several wrote.
    _check_same_run(train(alone, tmp_path / "new", 6), train(alone, tmp_path / "straight", 6))
    more = [train_from_store(store, tmp_path / name, mesh, 6) for name in ("stored", "stored straight")]
    _check_same_run(*more)


@pytest.mark.as_compiled
def test_two_processes_have_the_bits_of_one(start, tmp_path):
    """With two devices each: state, reports, validations, and checkpoints both ways."""
    _check_alike(start, tmp_path, 2)


@pytest.mark.as_compiled
@pytest.mark.thorough("two processes of two devices each")
def test_four_processes_have_the_bits_of_one(start, tmp_path):
    """With one device each."""
    _check_alike(start, tmp_path, 4)


@pytest.mark.parametrize(
    "victim",
    [
        1,
        pytest.param(
            0, marks=pytest.mark.thorough("process 1 is killed, and what jax prints is passed over")
        ),
    ],
)
def test_a_killed_process_ends_the_others(start, tmp_path, victim):
    """In one line and with a status; the newest checkpoint is sound, and one process goes on from it."""
    (tmp_path / "data.csv").write_text("user,item\n" + LINES, encoding="utf-8")
    folder, address = tmp_path / "run", _free_address()
    settings = [
        "--dataset",
        str(tmp_path / "data.csv"),
        "--out",
        str(folder),
        "--order",
        "file",
        "--dim",
        "2",
    ]
    settings += [
        "--rounds",
        "1000000",
        "--eval-every",
        "2",
        "--checkpoint-every",
        "2",
        "--cohort",
        "32",
        "--quiet",
    ]
    flags = ["--coordinator", address, "--processes", "2", "--process-id"]
    both = [start(["fedjax_rec", "run", *settings, *flags, str(k)]) for k in (0, 1)]
    end = time.monotonic() + LIMIT
    while not list(folder.glob("checkpoints/train/round-0*[2468]")) and time.monotonic() < end:
        assert [one.process.poll() for one in both] == [None, None], [one.end() for one in both]
        time.sleep(0.1)
    both[victim].process.kill()
    status, said, errors = both[1 - victim].end()
    lines = errors.replace("\r", "\n").strip().splitlines()
    assert status in (1, 2), errors
    assert lines[-1].startswith("fedjax-rec: error: "), errors
    assert ("lost another one" in lines[-1]) or ("another process of this run ended" in lines[-1])
    assert "Traceback" not in errors
    assert "@     0x" not in errors
    assert said == ""

    latest = find_latest(folder / "checkpoints/train")
    assert not latest.damaged
    rounds = latest.meta["round"] + 2
    assert main(["resume", str(folder), "--rounds", str(rounds)]) == 0
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["rounds"] == rounds


@pytest.mark.parametrize("late", [True, pytest.param(False, marks=pytest.mark.thorough("test_shares"))])
def test_a_damaged_share_ends_all_processes(start, tmp_path, late):
    """At opening or in mid-run: each says in one line which process has which file, with status 2."""
    store = fr.data.store.synthesise(tmp_path / "store", clients=4000, items=200, events_per_client=50).path
    copies = [copy_share(store, tmp_path / f"copy-{k}", 2, k) for k in (0, 1)]
    folder, damaged = tmp_path / "run", copies[1] / "items.bin"
    if not late:
        values = bytearray(damaged.read_bytes())
        values[-9] ^= 1
        damaged.write_bytes(values)
    settings = (
        f"--out {folder} --dim 2 --rounds 1000000 --eval-every 2 --checkpoint-every 2 --cohort 32 "
        f"--evaluate-clients 50 --quiet --coordinator {_free_address()} --processes 2"
    ).split()
    both = [
        start(["fedjax_rec", "run", "--dataset", str(copies[k]), *settings, "--process-id", str(k)])
        for k in (0, 1)
    ]
    end = time.monotonic() + LIMIT
    while late and not list(folder.glob("checkpoints/train/round-0*[2468]")) and time.monotonic() < end:
        assert [one.process.poll() for one in both] == [None, None], [one.end() for one in both]
        time.sleep(0.1)
    if late:
        damaged.write_bytes(b"")
    told = "ends within the events of a client" if late else "was changed after it was sealed"
    for one in both:
        status, said, errors = one.end()
        last = errors.replace("\r", "\n").strip().splitlines()[-1]
        assert (status, said) == (2, ""), errors
        assert re.fullmatch(
            rf"fedjax-rec: error: process 1 \(.*\): {damaged}: {told}; make the store anew", last
        )
        assert "Traceback" not in errors


def test_processes_of_different_commands(start, tmp_path):
    """One line and status 2 in both: what they would exchange next differs."""
    data, folder = tmp_path / "data.csv", tmp_path / "run"
    data.write_text("user,item\n" + LINES, encoding="utf-8")
    settings = ["--dataset", str(data), "--dim", "2", "--rounds", "2", "--eval-every", "1", "--quiet"]
    flags = ["--coordinator", _free_address(), "--processes", "2", "--process-id"]
    commands = [
        ["run", *settings, "--out", str(tmp_path / "new"), *flags, "0"],
        ["resume", str(folder), *flags, "1"],
    ]
    for status, said, errors in [one.end() for one in [start(["fedjax_rec", *each]) for each in commands]]:
        assert (status, said, errors.count("fedjax-rec: error")) == (2, "", 1), errors
        assert "Traceback" not in errors
        last = errors.strip().splitlines()[-1]  # gloo may have said before that it connected
        assert "command is 'resume' there, not 'run'; give all processes the same command" in last


def test_a_coordinator_that_does_not_answer(start):
    """One line and status 2, once the limit is over; nothing was written."""
    flags = [
        "--coordinator",
        _free_address(),
        "--processes",
        "2",
        "--process-id",
        "1",
        "--join-timeout",
        "0.5",
    ]
    status, said, errors = start(["fedjax_rec", "run", "--out", "no/such/run", *flags]).end()
    assert (status, said) == (2, "")
    assert errors.startswith(
        "fedjax-rec: error: process 1 waited 0.5 s in vain: the coordinator at 127.0.0.1:"
    )
    assert errors.count("\n") == 1
    assert not (PROJECT / "no/such/run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("10.0.0.1", 2, 0), "coordinator='10.0.0.1' is no HOST:PORT"),
        (("10.0.0.1:99999", 2, 0), "is no HOST:PORT"),
        (("10.0.0.1:9876", 0, 0), "processes must be at least 1, not 0"),
        (("10.0.0.1:9876", 2, 2), "process_id=2 is out of range; the processes are 0 to 1"),
    ],
)
def test_places_that_cannot_be(given, message):
    """Refused before anybody is waited for."""
    with pytest.raises(ValueError, match=message):
        initialize_distributed(*given)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--distributed"], "TPU); give --coordinator, --processes and --process-id"),
        (["--processes", "2"], "TPU); give --coordinator and --process-id, too"),
        (["--process-id", "0"], "TPU); give --coordinator and --processes, too"),
        (["--coordinator", "127.0.0.1:99", "--processes", "2"], "TPU); give --process-id, too"),
        (["--processes", "0"], "--processes must be at least 1, not 0"),
        (["--coordinator", "here"], "--coordinator='here' is no HOST:PORT"),
        (["--processes", "1", "--join-timeout", "0"], "--join-timeout must be above 0 seconds, not 0.0"),
    ],
)
def test_what_is_missing_is_named_by_its_flag(flags, told, capsys, monkeypatch):
    """Of `resume` and `run`, where no cluster is found; jax says so only where it has not started yet."""

    def find_nothing(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", find_nothing)
    for command in (["resume", "no/such/run"], ["run", "--out", "no/such/run"]):
        assert told in refusal([*command, *flags], capsys)


def test_too_late_to_join():
    """jax has started in this process."""
    assert jax.devices()
    with pytest.raises(ValueError, match="jax has started already"):
        initialize_distributed("127.0.0.1:9876", 1, 0, timeout=5)


@pytest.mark.parametrize(
    "settings",
    [
        {"tune": 4},
        {"splitter": "strong"},
        {"evaluation_point": "local"},
        {"secret_noise": True, "noise_multiplier": 1.0, "clip": 1.0},
    ],
)
def test_what_one_process_does_is_refused(settings):
    """By the table, naming the setting."""
    with pytest.raises(ParameterError, match="by one process, and here are several"):
        check_alone(Settings(**settings))


def test_one_run_at_a_time():
    """Several seeds or algorithms are several runs."""
    with pytest.raises(ParameterError, match="several runs of one command"):
        check_alone(Settings(), several_runs=True)
    check_alone(Settings())
    assert sum("by one process, and here are {one}" in pair.why for pair in PAIRS) == 5


def test_a_parent_passes_words_on(tmp_path):
    """As they come, but for what jax's runtime says of its processes."""
    noise = "[Gloo] Rank 0 is connected\nE1129 16:50:24.898021 15685 x.cc:1549] lost\n1\nRPC: /Poll\n"
    (tmp_path / "words").write_text(f"reading\n{noise}fedjax-rec: saved\n  0%|", encoding="utf-8")
    with (tmp_path / "words").open() as source, (tmp_path / "kept").open("w") as target:
        dropped = pass_on_words(source.fileno(), target.fileno())
    assert dropped.decode() == noise
    assert (tmp_path / "kept").read_text(encoding="utf-8") == "reading\nfedjax-rec: saved\n  0%|"


def test_who_has_a_parent():
    """Those who are one of several."""
    assert wants_supervisor(["resume", "RUN", "--coordinator=h:1"])
    assert not wants_supervisor(["run", "--dataset", "x"])
    assert not wants_supervisor(["bench", "--distributed"])
    assert not wants_supervisor([])


def _commands_of(text: str) -> list[list[str]]:
    """The calls of the command line in a script, without what the shell fills in."""
    calls = [line[line.index("fedjax-rec ") :] for line in text.splitlines() if "fedjax-rec r" in line]
    return [shlex.split(call.partition(" $(")[0].replace('"$@"', "").rstrip('"')) for call in calls]


def test_deployment_scripts_parse():
    """Their shell, their YAML, and the flags of their commands."""
    scripts = [PROJECT / "deploy" / name for name in ("slurm.sh", "tpu_vm.sh")]
    texts = [script.read_text(encoding="utf-8") for script in scripts]
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)  # noqa: S603, S607 - of this project
    jobs = yaml.safe_load((PROJECT / "deploy/jobset.yaml").read_text(encoding="utf-8"))
    job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    texts.append(container["args"][0])
    assert (jobs["kind"], job["completionMode"]) == ("JobSet", "Indexed")

    commands = [command for text in texts for command in _commands_of(text)]
    assert [command[1] for command in commands] == ["resume", "run", "run", "resume", "run"]
    for _, *arguments in commands:
        numbered = ["0" if argument.startswith("$JOB") else argument for argument in arguments]
        given = build_parser(arguments[0]).parse_args(numbered)
        assert given.distributed or given.processes == job["completions"]
