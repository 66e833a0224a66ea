"""`fedjax-rec plan`: the memory is the engine's plan of data that are there, and what cannot fit is refused."""

import json

import pytest

import fedjax_rec as fr
from experiments.scaling.fit import fit
from fedjax_rec.cli.main import main
from fedjax_rec.runs import fitted
from fedjax_rec.runs.forecast import Shape, forecast, plan_on_paper
from fedjax_rec.runs.machines import MACHINES, Work, machine_of, seconds_of
from fedjax_rec.runs.settings import Settings
from fedjax_rec.testing import tiny_population
from tests.cli.refusals import refusal


@pytest.mark.parametrize("epochs", [1, 3])
def test_memory_on_paper_is_that_of_the_data(epochs):
    """The same sizes, whether the data are there or not."""
    population = tiny_population()
    algorithm = fr.fedmf(dim=8, cohort=10, local_epochs=epochs, stream_clients=0)
    mean = population.size.num_events / population.num_clients
    shape = Shape(population.num_clients, population.num_items, mean, population.max_examples, False)
    assert plan_on_paper(algorithm, shape) == algorithm.plan(population)


def test_sizes_of_a_hundred_million_clients():
    """Tables of ten million items of 64 numbers and a bias, and what clients keep in host memory."""
    shape = Shape(100_000_000, 10_000_000, 100, 1000, True)
    found = forecast(Settings(dim=64), shape, "h200", 8)
    sizes = found.plan.num_bytes
    assert sizes["model"] == 8 * 10_000_000 * 65 * 4
    assert sizes["host"] == 100_000_000 * 64 * 4
    assert sizes["data"] >= 8 * 4 * 100_000_001  # how many events each client has
    assert found.room == int(8 * 0.9 * 141e9)
    assert found.seconds is not None


def test_several_devices_share_the_clients_and_not_the_table():
    work = Work(4000, 100, 80, 8.0, 500, 64, 100_000, 1, 1, 32)
    alone = seconds_of(machine_of("cpu"), work)
    shared = seconds_of(machine_of("cpu"), work._replace(devices=2))
    assert alone / 2 <= shared < alone
    by_name = {name: seconds_of(machine, work) for name, machine in MACHINES.items() if not machine.is_cpu}
    assert by_name["h200"] < by_name["h100"] < by_name["a100"]


def test_the_constants_are_those_of_the_committed_points():
    """And the points that were held out are met to a quarter in the median, as `plan` says."""
    found = fit()
    assert found.coefficients == pytest.approx(fitted.COEFFICIENTS, rel=1e-3)
    errors = found.held_out["error"].abs()
    assert (len(found.fitted), len(found.held_out)) == (fitted.POINTS, fitted.HELD_OUT)
    assert errors.median() == pytest.approx(fitted.MEDIAN_ERROR, abs=1e-3)
    assert errors.max() == pytest.approx(fitted.WORST_ERROR, abs=1e-3)
    assert errors.median() < 0.25


def test_the_command_prints_memory_and_time(capsys):
    sizes = ["--clients", "6040", "--items", "3706", "--events-per-client", "166", "--rounds", "100"]
    assert main(["plan", *sizes, "--device", "v6e", "--count", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] == 2 * sum(found["memory_of_a_device"].values())
    assert found["seconds_of_all_rounds"] == pytest.approx(100 * found["seconds"])
    assert found["basis"].startswith("a prediction that was not measured")
    assert main(["plan", *sizes]) == 0
    text = capsys.readouterr().out
    assert f"points held out of the fit: {fitted.MEDIAN_ERROR:.0%} in the median" in text
    assert main(["plan", *sizes, "--algorithm", "fedals"]) == 0
    assert "only rounds of fedmf were measured" in capsys.readouterr().out


def test_more_events_than_32_bits_count_wait_in_a_store(capsys):
    sizes = ["--clients", "100e6", "--items", "10e6", "--dim", "64", "--device", "h200", "--count", "8"]
    assert main(["plan", *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stored"]
    assert main(["plan", *sizes, "--json", "--stored"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["plan", *sizes]) == 0
    assert "32 bits cannot count 10,000,000,000 events in memory" in capsys.readouterr().out
    with pytest.raises(ValueError, match="leave them in a store on disk"):
        forecast(Settings(dim=64), Shape(10**8, 10**7, 100, 1000, False), "h200", 8)


def test_where_the_store_decides_more_devices_do_not_help(capsys):
    """And that is said, with its rate; where it does not, how long it takes."""
    sizes = ["--clients", "50e6", "--items", "5e6", "--device", "h100", "--cohort", "20000", "--stored"]
    seconds = []
    for count in ("1", "8"):
        assert main(["plan", *sizes, "--count", count, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["seconds"] == found["store_seconds"]
        seconds.append(found["seconds"])
    assert seconds[0] == seconds[1]
    assert main(["plan", *sizes]) == 0
    text = capsys.readouterr().out
    assert (
        "a thread that reads the store decides: 6,666,667 events/s; more or faster devices do not help"
        in text
    )
    assert main(["plan", "--clients", "1e6", "--items", "2e5", "--stored"]) == 0
    assert "a thread reads the store meanwhile, 15.0 ms a round" in capsys.readouterr().out


def test_what_follows_from_the_size_is_said(capsys):
    """The settings, the store on disk, and which share of the memory a plan may take."""
    sizes = ["--clients", "50e6", "--items", "5e6", "--device", "h100", "--stored"]
    assert main(["plan", *sizes, "--learning-rate", "0.1"]) == 0
    text = capsys.readouterr().out
    assert (
        "settings: --dim 128 --num-negatives 8 --batch-size 64 --local-epochs 1 --learning-rate 0.1; " in text
    )
    assert "server by fedavg(1.0); by the size of the data: --dim, --num-negatives\n" in text
    assert "GiB of 67.1 on all devices, 90% of their memory" in text
    assert main(["plan", *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["store_bytes"] == 4 * 5_000_000_000 + 8 * 50_000_001
    assert found["settings"]["dim"] == 128
    assert found["settings_by_size"] == ["dim", "num_negatives", "learning_rate"]
    assert main(["plan", "--clients", "1e4", "--items", "1e4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store_bytes"] == 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--clients", "50M", "--items", "1e5"], "--clients: '50M' is no whole number, such as 50000000 or 50e6"),
        (["--client", "50e6", "--items", "1e5"], "unknown setting '--client'; did you mean --clients?"),
        (["--clients", "15e6", "--items", "1e5", "--device", "v5e"], "leave histories in a store"),
        (["--clients", "1e6", "--items", "1e6", "--dim", "512", "--device", "v5e"], "lower --dim"),
        (["--clients", "1e3", "--items", "1e3", "--device", "h300"], "unknown --device 'h300'; did you mean"),
        (["--clients", "1e3", "--items", "50"], "change --events-per-client or --longest"),
        (["--clients", "0", "--items", "500"], "--clients must be at least 1, not 0"),
        (["--clients", "100", "--items", "500", "--cohort", "200"], "--cohort=200 exceeds the population"),
        (["--clients", "100", "--items", "500", "--count", "0"], "--count must be at least 1"),
        (["--clients", "100", "--items", "500", "--count", "101"], "--count=101 devices for a cohort of 100"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(given, text, capsys):
    told = refusal(["plan", *given], capsys)
    assert text in told
    assert told.count("\n") == 1
