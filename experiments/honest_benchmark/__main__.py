"""The command line.

    python -m experiments.honest_benchmark --data-dir DIR       # everything that is not yet in results/
    python -m experiments.honest_benchmark --table              # README.md and the picture from results/
    python -m experiments.honest_benchmark --smoke              # under a minute, into a temporary folder

Duration and numbers to expect stand in the README beside this file.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

import fedjax_rec as fr
from experiments.honest_benchmark.centrals import PREFIX
from experiments.honest_benchmark.plan import CENTRALS, Job, jobs
from experiments.honest_benchmark.spaces import VARIANTS
from experiments.honest_benchmark.store import RESULTS, write
from experiments.honest_benchmark.table import HERE, update
from experiments.honest_benchmark.task import BUDGETS, DATASETS, SEEDS, SMOKE, load_task
from experiments.honest_benchmark.units import timed

SMOKE_NAMES, SMOKE_CENTRALS = ("fedmf",), ("popularity", "ease")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: by default those of the process.

    Returns:
        the options.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.honest_benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--data-dir", help="folder of the real data; without it: downloads, or none for ml-1m-loo"
    )
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*sorted(VARIANTS), *(PREFIX + name for name in CENTRALS)],
        help="these methods; without central ones among them, those too",
    )
    parser.add_argument("--budget", type=int, help="trials of each algorithm; by default 12, 4 on ml-1m-loo")
    parser.add_argument("--rounds", type=int, help="of the default cohort in a trial; by default 300 or 400")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="runs of each algorithm (default: 3)")
    parser.add_argument("--no-leaky", action="store_true", help="leave out the leaky table")
    parser.add_argument("--table", action="store_true", help="only write README.md and the picture again")
    parser.add_argument(
        "--smoke", action="store_true", help="one algorithm, a few rounds, a temporary folder"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results; by default results/ beside the script"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left to do.

    Args:
        arguments: of the command line.

    Returns:
        the exit status: 1 if a unit failed.
    """
    given = parse(arguments)
    if given.table:
        update(given.out or RESULTS, HERE if given.out is None else given.out)
        return 0
    with contextlib.suppress(RuntimeError):  # jax has started: it stays as it is
        fr.use_cores()
    jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "fedjax_rec-jax-cache"))
    if not given.smoke:
        return _run(given, given.out or RESULTS, tuple(given.only or VARIANTS))
    with tempfile.TemporaryDirectory() as place:
        folder = given.out or Path(place)
        given.datasets, given.seeds = ["synthetic"], 2
        status = _run(given, folder, tuple(given.only or SMOKE_NAMES))
        update(folder, folder)
        print((folder / "README.md").read_text(encoding="utf-8"))
    return status


def _run(given: argparse.Namespace, folder: Path, names: tuple[str, ...]) -> int:
    tasks = []
    for dataset in given.datasets:
        budget = SMOKE if given.smoke else BUDGETS[dataset]
        budget = budget._replace(trials=given.budget or budget.trials, rounds=given.rounds or budget.rounds)
        tasks.append(load_task(dataset, given.data_dir, budget))
    failures = 0
    centrals = tuple(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    centrals = centrals or (SMOKE_CENTRALS if given.smoke else CENTRALS)
    names, seeds = tuple(name for name in names if name in VARIANTS), tuple(range(given.seeds))
    for job in jobs(tasks, names, seeds, folder, leaky=not given.no_leaky, centrals=centrals):
        result = _do(job)
        write(folder, job.unit, result | {"recipe": job.recipe})
        failures += "failed" in result
        print(f"{job.unit.file}: {result.get('failed', 'done')}, {result['seconds']:.1f} s", file=sys.stderr)
    return int(failures > 0)


def _do(job: Job) -> dict:
    from tqdm import tqdm

    with tqdm(desc=job.unit.file, unit="round", leave=False) as bar:

        def tell(done: int, budget: int) -> None:
            bar.total = budget
            bar.update(done - bar.n)

        return timed(lambda: job.work(tell))


if __name__ == "__main__":
    raise SystemExit(main())
