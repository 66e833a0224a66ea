"""The benchmark runs, resumes, goes on after a failure, and its tables hold what was measured."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

import fedjax_rec as fr
from experiments.honest_benchmark import units
from experiments.honest_benchmark.__main__ import main
from experiments.honest_benchmark.plan import can_run, jobs
from experiments.honest_benchmark.spaces import (
    LATER,
    REPLACED,
    RESCALED,
    SPACES,
    VARIANTS,
    carried_of,
    needs_ratings,
    space_of,
    trials_near,
    trials_of,
)
from experiments.honest_benchmark.store import Unit, finished, read_all, write
from experiments.honest_benchmark.table import BEGIN, END, render, update
from experiments.honest_benchmark.task import Budget, Task, make, make_on_devices, rounds_of
from fedjax_rec.algorithms.registry import accepted, names
from fedjax_rec.data.synthetic import synthetic
from fedjax_rec.engine.chunks import plan_run
from fedjax_rec.engine.plan import with_copy
from fedjax_rec.runs.inputs import protocol_of
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.sweep import _group_trials

CENTRALS = ("popularity",)
PART = {"ndcg@10": 0.1, "hr@10": 0.2}
LIMITS = {"ndcg@10": (0.0, 0.2), "hr@10": (0.1, 0.3)}
SEED = {  # what a clean run reports
    "metrics": {"full": PART, "sampled99": PART},
    "intervals": {"full": LIMITS, "sampled99": LIMITS},
    "traffic": {"up": 1.0, "down": 1.0},
    "round": 1,
    "settings": {},
    "protocol_id": "id",
}
TUNED = {"best": {"settings": {}, "round": 1}, "trials": [], "rounds": 2, "eval_every": 1}


def with_ratings(task):
    """The same task, with ratings at random."""
    rng = np.random.default_rng(0)

    def rate(count):
        return rng.integers(1, 6, count).astype(np.float32)

    users = task.split.num_users
    split = task.split._replace(
        ratings=rate(len(task.split.items)), validation_ratings=rate(users), test_ratings=rate(users)
    )
    return task._replace(split=split, population=fr.population_of(split))


def do(tasks, names, seeds, folder, **options):
    """Do all that is left, and say what it was."""
    done = []
    for job in jobs(tasks, names, seeds, folder, centrals=CENTRALS, **options):
        result = units.timed(partial(job.work, lambda *_: None))
        write(folder, job.unit, result | {"recipe": job.recipe})
        done.append((job.unit.name, job.unit.policy, result.get("failed")))
    return done


@pytest.fixture(scope="module")
def task():
    source = synthetic(80, 90)
    split = fr.leave_one_out(source)
    return Task("tiny", source, split, fr.population_of(split), Settings(), "id", Budget(2, 4))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a smoke run, to be read only."""
    folder = tmp_path_factory.mktemp("smoke")
    assert main(["--smoke", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def results(task, tmp_path_factory):
    """What two seeds of one variant gave, clean and leaky, to be read only."""
    folder = tmp_path_factory.mktemp("results")
    do([task], ("fedmf",), (0, 1), folder)
    return read_all(folder)


def test_smoke(smoke, tmp_path, capsys):
    """`--smoke` writes every unit and a table; a second call finds nothing left to do."""
    shutil.copytree(smoke, tmp_path, dirs_exist_ok=True)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.json")}
    runs = {f"synthetic/fedmf.{policy}.{seed}.json" for policy in ("clean", "paper-leaky") for seed in (0, 1)}
    methods = ("fedmf", "central-popularity", "central-ease")
    runs |= {f"synthetic/{name}.clean.{seed}.json" for name in methods for seed in (0, 1)}
    assert files == runs | {f"synthetic/{name}.tune.0.json" for name in methods} | {
        "synthetic/reference.json"
    }
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert main(["--smoke", "--out", str(tmp_path)]) == 0
    assert "| fedmf |" in capsys.readouterr().out
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    text = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*/*.json"))
    assert str(tmp_path) not in text
    assert not re.search(r"/(home|tmp|work|root)\b", text)
    table = (tmp_path / "README.md").read_text(encoding="utf-8")

    def score(name):
        runs = [json.loads((tmp_path / f"synthetic/{name}.clean.{n}.json").read_text()) for n in (0, 1)]
        return np.mean([run["metrics"]["full"]["ndcg@10"] for run in runs])

    mean, best = score("fedmf"), score("central-ease")
    assert f"| fedmf | {mean:.4f} |" in table
    ratio = re.search(
        r"federated test score over highest central one: NDCG@10 ([\d.]+) \(fedmf over ease", table
    )
    assert ratio
    assert float(ratio[1]) == pytest.approx(mean / best, rel=0.02)  # of rounded figures
    assert table.index("ease (central)") < table.index("| fedmf |") < table.index("**LEAKY**")


def test_a_failure_does_not_stop_the_others(task, tmp_path, monkeypatch):
    """A variant that fails is written as such, the next one goes on, and a failure is tried again."""

    def tune(task, name, *_):
        if name == "fedmf-adam":
            raise RuntimeError("a bug of its own\nin two lines")
        return TUNED | {"protocol_id": task.protocol_id}

    monkeypatch.setattr(units, "tune", tune)
    monkeypatch.setattr(units, "run_clean", lambda *_: SEED)

    def go():
        return do([task], ("fedmf-adam", "fedmf"), (0,), tmp_path, leaky=False)

    failed = ("fedmf-adam", "tune", "RuntimeError: a bug of its own")
    central = [("central-popularity", policy, None) for policy in ("tune", "clean")]
    ours = [(name, policy, None) for name, policy in (("fedmf", "tune"), ("fedmf", "clean"))]
    assert go() == [("reference", "", None), *central, failed, *ours]
    assert go() == [failed]
    assert "* fedmf-adam, tune, seed 0: RuntimeError: a bug of its own" in render(read_all(tmp_path))


def test_another_budget_is_another_recipe(tmp_path):
    """A result counts for its own recipe only."""
    unit = Unit("tiny", "fedmf", "tune")
    write(tmp_path, unit, {"recipe": {"budget": [2, 4]}, "value": np.float32(1)})
    assert finished(tmp_path, unit, {"budget": (2, 4)}) is not None
    assert finished(tmp_path, unit, {"budget": (3, 4)}) is None


def test_a_run_depends_on_defaults_rounds_and_patience(task, tmp_path, monkeypatch):
    """Whatever a run was made with makes it unfinished when it changes."""

    def left(task):
        unit = Unit(task.dataset, "fedmf", "tune")
        tune = next(job for job in jobs([task], ("fedmf",), (0,), tmp_path, centrals=()) if job.unit == unit)
        write(tmp_path, unit, TUNED | {"recipe": tune.recipe})
        return [job.recipe for job in jobs([task], ("fedmf",), (0,), tmp_path, centrals=())][1:]

    clean, leaky = left(task)
    assert clean == leaky
    assert (clean["defaults"]["dim"], clean["rounds"], clean["patience"]) == (64, 2, 6)
    hasty = task._replace(dataset="hasty", budget=task.budget._replace(patience=1))
    assert left(hasty)[0]["patience"] == 1
    monkeypatch.setitem(VARIANTS, "fedmf", VARIANTS["fedmf"]._replace(fixed={"dim": 8}))
    assert left(task._replace(dataset="narrow"))[0]["defaults"]["dim"] == 8


def test_protocols_and_stale_runs_share_no_table(task, results):
    """Leaky results have an id of their own; a result of another protocol and old settings are refused."""
    assert units.leaky_id(task) != fr.evaluation.protocol_id(
        protocol_of(task.settings, task.source, task.split)
    )
    found = [dict(result) for result in results]
    assert {r["protocol_id"] for r in found if r["policy"] == "paper-leaky"} == {units.leaky_id(task)}
    reference = next(r for r in found if r["name"] == "reference")
    with pytest.raises(ValueError, match="share no table"):
        render([*found, reference | {"protocol_id": "other"}])
    tuned = next(r for r in found if (r["name"], r["policy"]) == ("fedmf", "tune"))
    tuned["best"] = tuned["best"] | {"round": 99}
    assert "| fedmf |" not in render(found)
    assert "* fedmf, clean, seed 1: of settings that tuning no longer chooses" in render(found)


def test_a_failed_seed_has_no_price(results):
    """The mean of the seeds that are left is marked, and is set against nothing."""
    found = [result for result in results if result["policy"] != "paper-leaky"]
    whole = re.search(r"\| fedmf \|.*", render(found))
    lost = next(
        n for n, r in enumerate(found) if (r["name"], r["policy"], r["seed"]) == ("fedmf", "clean", 1)
    )
    found[lost] = {k: found[lost][k] for k in ("dataset", "name", "policy", "seed")} | {
        "failed": "it diverged"
    }
    part = re.search(r"\| fedmf \|.*", render(found))
    assert whole
    assert part
    assert re.fullmatch(r"[\d.]+", whole[0].split(" | ")[7])
    assert part[0].split(" | ")[3] == "1 of 2"
    assert not part[0].split(" | ")[7].strip()


def test_another_seed_takes_the_place_of_a_failed_one(task, tmp_path, monkeypatch):
    """As many runs as were asked for, if two more seeds are enough; the failures stay, and are tried again."""
    bad = {1}

    def run(*given):
        if given[2] in bad:  # the seed
            raise ValueError("the refit diverged")
        return SEED

    monkeypatch.setattr(units, "tune", lambda task, *_: TUNED | {"protocol_id": task.protocol_id})
    monkeypatch.setattr(units, "run_clean", run)

    def runs(folder):
        for job in jobs([task], ("fedmf",), (0, 1, 2), folder, leaky=False, centrals=CENTRALS):
            write(folder, job.unit, units.timed(partial(job.work, lambda *_: None)) | {"recipe": job.recipe})
            if (job.unit.name, job.unit.policy) == ("fedmf", "clean"):
                yield job.unit.seed

    assert list(runs(tmp_path / "one")) == [0, 1, 2, 3]
    assert list(runs(tmp_path / "one")) == [1]
    assert "3 of 4, " in render(read_all(tmp_path / "one"))
    bad |= {0, 2, 3, 4}
    assert list(runs(tmp_path / "all")) == [0, 1, 2, 3, 4]
    bad.clear()
    assert list(runs(tmp_path / "none")) == [0, 1, 2]


def test_minutes_of_all_units(tmp_path):
    """Central methods, tuning and every run count, the failed ones too; the longest are named first."""
    for name in ("ease", "mf"):
        write(
            tmp_path, Unit("tiny", f"central-{name}", "tune"), TUNED | {"seconds": 90.0, "protocol_id": "id"}
        )
    write(tmp_path, Unit("tiny", "fedmf", "tune"), TUNED | {"seconds": 600.0, "protocol_id": "id"})
    for seed in (0, 1):
        run = SEED | {"seconds": 60.0, "recipe": {"tuned": TUNED["best"]}}
        write(tmp_path, Unit("tiny", "fedmf", "clean", seed), run)
    write(tmp_path, Unit("tiny", "fcf", "tune"), {"failed": "at once", "seconds": 120.0})
    line = "Minutes of all units, one after another: 17; most of them fedmf 12, central methods 3, fcf 2."
    assert line in render(read_all(tmp_path))


def test_budgets_are_equal(task):
    """All variants have as many local trainings, whatever their cohorts."""
    for cohort in (20, 40, 80):
        algorithm = fr.fedmf(dim=2, cohort=cohort)
        rounds, every = rounds_of("fedmf", algorithm, task._replace(budget=Budget(1, 8)))
        assert rounds * cohort == 8 * 80
        assert every * 20 >= rounds


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_has_a_space(name):
    """Settings are those of the factory, numbers, and the defaults come first."""
    known = {*accepted(VARIANTS[name].algorithm), "server", "server_learning_rate"}
    assert set(space_of(name)) <= known
    trials = trials_of(name, 3)
    assert trials == trials_of(name, 5)[: len(trials)]
    if space_of(name):
        assert all(isinstance(value, float) for trial in trials for value in trial.values())
    make(name, **trials[0])


@pytest.mark.parametrize("name", [name for name in sorted(VARIANTS) if len(trials_of(name, 3)) > 1])
def test_trials_share_one_program(name, task):
    """No number that is tuned is asked for when the program is made: else each trial would be compiled anew."""
    smaller = {"cohort": 20} if "cohort" in VARIANTS[name].fixed else {}
    trials = [trial | smaller for trial in trials_of(name, 3)]
    algorithms = [make(name, **trial) for trial in trials]
    groups = _group_trials(partial(make, name), algorithms, trials, with_ratings(task).population)
    assert [group.members for group in groups] == [[0, 1, 2]]


def test_every_algorithm_is_a_variant():
    """Registered algorithms come in by being registered, and no space is left without one."""
    assert set(names()) <= set(VARIANTS)
    assert set(SPACES) <= set(VARIANTS)
    assert needs_ratings("fedmf-ratings")
    assert not needs_ratings("fedmf")


def test_carried_settings_come_first():
    """Another data set's best trials are tried first, then draws near the very best."""
    best = [{"learning_rate": 0.1}, {"learning_rate": 1.0}, {"learning_rate": 9.0}]
    carried = carried_of([{"settings": one} for one in best], 4)
    assert carried == best[:2]
    trials = trials_near(carried, 4)
    assert trials[:2] == best[:2]
    assert all(0.1 / 3 <= trial["learning_rate"] <= 0.3 for trial in trials[2:])
    assert len(trials) == 4
    assert trials_near([{}], 4) == [{}]


def test_one_device_where_a_copy_on_each_does_not_fit(task, monkeypatch):
    """Clients that keep whole tables are not refused for the number of devices."""
    monkeypatch.setattr("experiments.honest_benchmark.task.choose_devices", lambda _: 2)
    population = task.population
    assert make_on_devices("fedrap", population, {}).plan(population).devices == 2
    needed = sum(with_copy(make("fedrap").plan(population)).num_bytes.values())
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda _: int(1.2 * needed))
    assert make_on_devices("fedrap", population, {"stream_clients": 0}).plan(population).devices == 1
    monkeypatch.setattr("fedjax_rec.engine.chunks.CHUNK", needed // 100)
    streaming = plan_run(make_on_devices("fedrap", population, {}), population)
    assert (streaming.devices, streaming.stream_clients is None) == (2, False)  # what they keep is there once


@pytest.mark.parametrize("name", LATER)
def test_a_variant_of_another_size_runs_where_settings_are_carried(name, task, tmp_path, monkeypatch):
    """On the larger data it runs, beside its base or instead of it, and begins with its base's best settings."""
    large = task._replace(dataset="large", carry="tiny")
    base = LATER[name]
    best = [dict.fromkeys(RESCALED.get(name, {"learning_rate": 1.0}), 0.25)]
    wanted = [{setting: 0.25 * RESCALED.get(name, {}).get(setting, 1.0) for setting in best[0]}]
    assert [can_run(each, task) for each in (base, name)] == [True, False]
    assert [can_run(each, large) for each in (base, name)] == [base not in REPLACED, True]
    write(tmp_path, Unit("tiny", base, "tune"), {"trials": [{"settings": one} for one in best]})
    found = {job.unit: job for job in jobs([large], (name,), (0,), tmp_path, centrals=())}
    tune = found[Unit("large", name, "tune")]
    assert tune.recipe["carried"] == wanted

    def sweep(_make, _split, trials, **_):
        assert trials[:1] == wanted
        assert len(trials) == large.budget.trials
        raise LookupError("tried")

    monkeypatch.setattr(fr, "sweep", sweep)
    smaller = {"cohort": 20} if "cohort" in VARIANTS[name].fixed else {}
    monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(fixed=VARIANTS[name].fixed | smaller))
    with pytest.raises(LookupError, match="tried"):
        tune.work(lambda *_: None)


def test_what_is_carried_to_another_size_changes_with_it():
    """Settings that central methods have by the size of the data are carried over at their scale."""
    trials = [{"settings": {"regularisation": 0.01, "unobserved": 0.3}}]
    assert carried_of(trials, 2, "fcf") == [trials[0]["settings"]]
    assert carried_of(trials, 2, "fedals") == [{"regularisation": 0.007, "unobserved": 0.3}]


def test_ratings_table(task, tmp_path):
    """Algorithms that predict ratings are tuned on RMSE and have a table of their own."""
    rated = with_ratings(task)
    assert [failed for *_, failed in do([rated], ("fedmf-ratings",), (0, 1), tmp_path)] == [None] * 7
    found = render(read_all(tmp_path))
    assert "| method | RMSE |" in found
    assert "| biases (central) |" in found
    assert "| fedmf-ratings |" in found.split("RMSE")[1]
    assert not list(jobs([task], ("fedmf-ratings",), (0,), tmp_path, centrals=()))  # it has no ratings


def test_a_lost_central_method_takes_all_prices(smoke, tmp_path):
    """What may be the best of them is missing; and `--only` with central methods runs those that are left."""
    for path in smoke.glob("synthetic/*.json"):
        if path.name.startswith(("fedmf.clean", "fedmf.tune", "central-ease.tune", "central-ease.clean.0")):
            (tmp_path / "synthetic").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "synthetic")
    folder = str(tmp_path)
    assert main(["--smoke", "--out", folder, "--only", "central-ease", "fedmf", "--no-leaky"]) == 0
    assert (tmp_path / "synthetic" / "central-ease.clean.1.json").is_file()
    found = read_all(tmp_path)
    assert {result["name"] for result in found} == {"reference", "central-ease", "fedmf"}
    priced = re.search(r"\| fedmf \|.*", render(found))
    failed = {
        "dataset": "synthetic",
        "name": "central-mf",
        "policy": "clean",
        "seed": 0,
        "failed": "diverged",
    }
    blank = re.search(r"\| fedmf \|.*", render([*found, failed]))
    assert priced
    assert blank
    assert float(priced[0].split(" | ")[7]) > 0
    assert not blank[0].split(" | ")[7].strip()


def test_update_needs_markers(tmp_path):
    """What stands around the markers stays; without them nothing is overwritten."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    update(tmp_path / "none", tmp_path)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "No results yet" in text
    assert "old" not in text
    readme.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="no markers"):
        update(tmp_path / "none", tmp_path)
