"""The doctor: what it reports, and what it warns of when given numbers."""

import json
import os
import subprocess
import sys

import jax
import pytest

from fedjax_rec.cli import doctor
from fedjax_rec.cli.doctor import OPTION, Device, Report, advise_devices, as_dict, examine, render, warn
from fedjax_rec.cli.main import main
from fedjax_rec.rows.scatter import PATTERNS, STRATEGIES, Measurement


def _measured(strategy, pattern, nanoseconds, num_items=64):
    return Measurement(strategy, num_items, pattern, nanoseconds, nanoseconds - 0.5, nanoseconds + 0.5)


TIMES = (
    _measured("scatter", "popular", 50.0),
    _measured("scatter", "distinct", 4.0),
    _measured("sorted", "popular", 7.0),
    _measured("sorted", "distinct", 6.0),
)
REPORT = Report(
    versions={"python": "3.12.1", "jaxlib": "0.11.0"},
    devices=(Device("cuda", "NVIDIA X", 2, 3 * 2**30), Device("cuda", "NVIDIA Y", 1, None)),
    num_cores=4,
    num_rows=32,
    dim=8,
    measurements=TIMES,
    rule="sorted",
    warnings=("mind the gap",),
    advice=("sit down",),
)


@pytest.fixture(scope="module")
def report():
    """An examination of two tiny tables."""
    return examine(sizes=(8, 16), num_rows=4, dim=2, seconds=0.0)


def test_examination_covers_all(report):
    """Every strategy on every table and pattern, the versions promised, the devices that jax sees."""
    cases = [(m.strategy, m.num_items, m.pattern) for m in report.measurements]
    assert sorted(cases) == sorted((s, i, p) for s in STRATEGIES for i in (8, 16) for p in PATTERNS)
    promised = {"python", "fedjax_rec", "jax", "jaxlib", "flax", "optax", "numpy", "pandas"}
    assert promised <= set(report.versions)
    assert sum(device.num_devices for device in report.devices) == len(jax.devices())
    assert report.num_cores >= 1
    assert report.rule in STRATEGIES


def test_stages():
    """Each table is announced before it is timed."""
    stages: list[str] = []
    examine(sizes=(8, 9), num_rows=4, dim=2, seconds=0.0, on_stage=stages.append)
    assert stages == [
        "timing the row update: 8 items (1 of 2)",
        "timing the row update: 9 items (2 of 2)",
    ]


@pytest.mark.parametrize("num_rows", [0, 9])
def test_too_many_rows(num_rows):
    """Distinct ids are at most as many as items."""
    with pytest.raises(ValueError, match=f"num_rows={num_rows} must be 1 to 8"):
        examine(sizes=(8, 16), num_rows=num_rows)


@pytest.mark.parametrize(
    ("platform", "version", "flags", "expected"),
    [
        ("cuda", "0.10.1", "", 0),
        ("cuda", "0.10.2", "", 1),
        ("cuda", "0.11.0", "", 1),
        ("cuda", "0.11.0", f"--a=b --xla_backend_extra_options={OPTION}", 0),
        ("cuda", "0.11.1", "", 0),
        ("cpu", "0.11.0", "", 0),
        ("rocm", "0.11.0", "", 0),
    ],
)
def test_warning_of_the_version(platform, version, flags, expected):
    """NVIDIA with jaxlib 0.10.2 to 0.11.0 is warned of, with the ways out, unless the remedy is in place."""
    found = warn(platform, version, [], xla_flags=flags)
    assert len(found) == expected
    for text in found:
        for part in (version, "0.11.1 or later", "jax-ml/jax#38806", "openxla/xla#46225", "sorted"):
            assert part in text
        assert "--xla_backend_extra_options=-nvptx-allow-ftz-atomics" in text


@pytest.mark.parametrize(("popular", "warned"), [(39.9, False), (40.0, False), (40.1, True), (1.0, False)])
def test_warning_of_contention(popular, warned):
    """More than ten times slower on popular items is warned of, on any platform, per table."""
    times = [
        _measured("scatter", "popular", popular, 128),
        *TIMES[1:],
        _measured("scatter", "distinct", 4.0, 128),
    ]
    found = warn("cpu", "0.11.1", times)
    assert len(found) == warned
    if warned:
        assert "scatter is 10 times slower" in found[0]
        assert "128 items" in found[0]


def test_warning_of_contention_names_the_fastest():
    """What was quickest on popular items is the way out."""
    (text,) = warn("cpu", "0.11.1", TIMES)
    assert "sorted takes 7.0 ns a row" in text


def test_both_warnings():
    """The version and the clock speak for themselves."""
    assert len(warn("cuda", "0.11.0", TIMES)) == 2


def test_advice_on_idle_cores():
    """One CPU device on several cores leaves the others idle."""
    assert advise_devices("cpu", 1, 4) == (
        "4 cores but 1 CPU device: the engine runs on one core; `fedjax-rec run` gives each core a device, a "
        "script does so by fedjax_rec.use_cores() before anything else"
    )
    for quiet in (("cpu", 1, 1), ("cpu", 4, 4), ("cuda", 1, 16), ("tpu", 1, 8)):
        assert advise_devices(*quiet) is None


def test_text():
    """The text shows every part, marks the fastest of each case, and ends with warnings and advice."""
    lines = render(REPORT).splitlines()
    assert lines[0].split() == ["python", "3.12.1"]
    assert "2 x NVIDIA X (cuda), 3.0 GiB each" in lines[2]
    assert "1 x NVIDIA Y (cuda), memory unknown" in lines[3]
    starred = [line.split()[1:3] for line in lines if line.endswith(" *")]
    assert starred == [["popular", "sorted"], ["distinct", "scatter"]]
    assert "fastest here: sorted (1 of 2), scatter (1 of 2)" in lines
    assert lines[-2:] == ["warning: mind the gap", "advice: sit down"]


def test_platforms():
    """jax says `gpu` of two makes; the plugin's version tells which. Plugins may keep silent about memory."""

    class Client:
        def __init__(self, text):
            self.platform_version = text

    class Fake:
        def __init__(self, platform, text):
            self.platform, self.client = platform, Client(text)

        def memory_stats(self):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    pairs = {("gpu", "PJRT C API\ncuda 12090"): "cuda", ("gpu", "ROCm 6.4"): "rocm", ("tpu", "x"): "tpu"}
    for (platform, text), expected in pairs.items():
        assert doctor._platform(Fake(platform, text)) == expected
        assert doctor._memory(Fake(platform, text)) is None


def test_command_prints_text(monkeypatch, capsys):
    """The report goes to standard output, progress to standard error."""

    def fake(*, on_stage):
        on_stage("timing")
        return REPORT

    monkeypatch.setattr(doctor, "examine", fake)
    assert main(["doctor"]) == 0
    assert capsys.readouterr() == (render(REPORT) + "\n", "timing\n")


def test_command_prints_json(monkeypatch, capsys, report):
    """`--json` is one object, nothing else on standard output, with the promised keys."""
    monkeypatch.setattr(doctor, "examine", lambda **_: report)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(as_dict(report)))
    keys = "versions devices num_cores num_rows dim measurements rule warnings advice"
    assert list(found) == keys.split()
    assert set(found["devices"][0]) == {"platform", "kind", "num_devices", "memory"}
    promised = {"strategy", "num_items", "pattern", "median_ns", "min_ns", "max_ns", "fastest"}
    assert set(found["measurements"][0]) == promised
    assert sum(m["fastest"] for m in found["measurements"]) == 4


def test_unknown_flag(capsys):
    """One line, the nearest flag, status 2."""
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--jsno"])
    assert stop.value.code == 2
    assert "did you mean --json?" in capsys.readouterr().err


def test_help(capsys):
    """The command and its flag are described."""
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "--json" in capsys.readouterr().out


def test_no_device():
    """A platform that cannot start is one line and status 2, not a traceback."""
    command = [
        sys.executable,
        "-c",
        "import sys; from fedjax_rec.cli.main import main; sys.exit(main(['doctor']))",
    ]
    environment = os.environ | {"JAX_PLATFORMS": "nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert lines[0].startswith("fedjax-rec: error: jax starts no device, try JAX_PLATFORMS=cpu")
