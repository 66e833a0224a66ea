"""`fedjax-rec run`: train, evaluate and fill a run folder; `resume` trains by the same functions."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_rec.algorithms.registry import REQUIRED
from fedjax_rec.cli.argument_parser import HelpAll, Parser
from fedjax_rec.cli.output import Unfailing, stage, tell
from fedjax_rec.cli.parser import DEFAULT_ALGORITHM, FLAGS, add_settings, show_defaults_of
from fedjax_rec.cli.processes import (
    add_process_flags,
    check_alone,
    folder_of_first,
    is_one_of_several,
    joined,
)
from fedjax_rec.errors import printable
from fedjax_rec.runs.configuration import command_of, over, read_configuration
from fedjax_rec.runs.descriptions import settings_of as texts_of
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.signals import raise_if_stopped

if TYPE_CHECKING:
    from fedjax_rec.runs.baselines import FittedBaselines
    from fedjax_rec.runs.outcome import Outcome

SHOWN = {  # settings that `--help` shows; `--help-all` shows all
    "dataset", "data_dir", "splitter", "refit", "algorithm", "dim", "loss", "num_negatives", "local_epochs",
    "learning_rate", "cohort", "aggregator", "server_optimizer", "clip", "noise_multiplier", "target_epsilon",
    "rounds", "seed", "max_seconds", "baselines", "out",
}  # fmt: skip
_OWN = "option "  # before the names of an algorithm's own settings, among the parsed arguments


class Shown(NamedTuple):
    """What a run says besides errors."""

    table: bool = True  # what it found, as text on standard output
    json: bool = False  # the same as one JSON object
    progress: bool = True  # what it does, on standard error


SAY_ALL = Shown()


def add_parser(commands: Any) -> None:
    """Describe `run`; each setting is a flag."""
    parser = commands.add_parser(
        "run",
        help="train, evaluate and write a run folder",
        description="Train a federated recommender, evaluate it and write a run folder. Without arguments it "
        "trains on the embedded synthetic population.",
        usage="%(prog)s [--dataset DATA] [--algorithm NAME] [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action=HelpAll, nargs=0, help="show all settings, by group")
    parser.add_argument(
        "--config", metavar="FILE", help="a .toml file of settings, or a run folder to repeat; flags go first"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="so many runs of each algorithm, from --seed on"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the settings and the plan; train nothing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quiet", action="store_true", help="say nothing of the progress")
    add_process_flags(parser)
    add_settings(parser, shown=SHOWN, given_only=True)
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
        if action.dest == "algorithm":  # which may be given several times
            action.help = f"{action.help}; several with commas, or one by one"
    parser.before_parse = lambda arguments: _add_own_settings(parser, arguments)


def _add_own_settings(parser: Parser, arguments: Sequence[str]) -> None:
    """Make the settings flags that the chosen algorithm has alone, and show its defaults in the help."""
    with contextlib.suppress(ValueError, OSError):  # told when the settings are read
        named, config = _values_of("--algorithm", arguments), _values_of("--config", arguments)
        if not named and config:
            named = [read_configuration(config[-1]).get("algorithm", DEFAULT_ALGORITHM)]
        chosen = (named or [DEFAULT_ALGORITHM])[0].split(",")[0].strip()
        show_defaults_of(parser, chosen)
        own = {
            name: each for name, each in texts_of(chosen).items() if name not in Settings.__dataclass_fields__
        }
        group = parser.add_argument_group(f"settings that {chosen} has alone")
        for name, (default, text) in own.items():
            flag = f"--{name.replace('_', '-')}"
            plain = default is REQUIRED or isinstance(default, bool | int | float | str | None)
            if not plain or flag in parser.flags():
                continue  # no text can give it, or the flag means something else
            group.add_argument(
                flag,
                dest=f"{_OWN}{name}",
                default=argparse.SUPPRESS,
                metavar=type(default).__name__.upper() if default is not None else "VALUE",
                help=(text if default is None else f"{text} (default: {default})").replace("%", "%%"),
            )


def _values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """The values of a flag among arguments that are not parsed yet."""
    found = []
    for each, after in itertools.pairwise([*arguments, ""]):
        if each == flag:
            found.append(after)
        elif each.startswith(f"{flag}="):
            found.append(each.removeprefix(f"{flag}="))
    return found


def call(given: argparse.Namespace) -> int:
    """Train by the given settings, in a folder that is reserved first."""
    values = values_of_run(given)
    algorithms = [name.strip() for name in str(values.pop("algorithm", DEFAULT_ALGORITHM)).split(",")]
    settings = Settings(algorithm=algorithms[0], **values)
    show = Shown(table=not given.json, json=given.json, progress=not given.quiet)
    several_runs = len(algorithms) > 1 or given.seeds != 1
    if is_one_of_several(given):
        check_alone(settings, several_runs=several_runs)
    from fedjax_rec.runs.reserve import reserve_folder
    from fedjax_rec.runs.run_folder import name_of

    if several_runs:
        from fedjax_rec.cli.several_runs import settings_of_each, train_each

        each = settings_of_each(settings, algorithms, given.seeds)
        if given.dry_run:
            return dry_run(each, as_json=given.json)
        alone = Shown(table=False, progress=show.progress)
        train_one = partial(train, resume=False, show=alone, fitted={})
        return train_each(each, train_one, as_json=given.json)
    complete(settings)  # what the algorithm does not have is refused before anything is made
    if given.dry_run:
        return dry_run([settings], as_json=given.json)
    with (
        joined(given, cache=settings.cache),
        folder_of_first(lambda: reserve_folder(settings.out, name_of(settings))) as folder,
    ):
        return train(settings, folder, resume=False, show=show)


def values_of_run(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given: those of a file, and over them the flags.

    Args:
        given: the parsed arguments.

    Returns:
        by name; `algorithm` may be several names with commas between them.

    Raises:
        ValueError: if the file is malformed.

    Example:
        >>> values_of_run(argparse.Namespace(config=None, rounds=3))
        {'rounds': 3}
    """
    flags = {name: value for name, value in vars(given).items() if name in Settings.__dataclass_fields__}
    own = {name.removeprefix(_OWN): value for name, value in vars(given).items() if name.startswith(_OWN)}
    if own:
        texts = [flags.get("options"), *(f"{name}={value}" for name, value in own.items())]
        flags["options"] = ",".join(text for text in texts if text)
    return over({} if given.config is None else read_configuration(given.config), flags)


def dry_run(each: Sequence[Settings], *, as_json: bool) -> int:
    """Read the data, and print what runs would be made of; nothing is trained or written.

    Args:
        each: the settings of one run, or of several.
        as_json: whether it is printed as one JSON object; of several runs that has them under `runs`.

    Returns:
        the exit status.

    Raises:
        ValueError: on data or settings that cannot work.
    """
    plans = [_plan_of(settings) for settings in each]
    if as_json:
        print(json.dumps(plans[0] if len(plans) == 1 else {"runs": plans}, indent=2))
        return 0
    for plan in plans:
        for name in ("clients", "items", "events"):
            print(f"{name:>24}  {plan[name]:,}")
        print(f"{'memory':>24}  {plan['memory'] / 2**20:,.0f} MiB")
        if plan["disk"]:
            print(f"{'disk':>24}  {plan['disk'] / 2**20:,.0f} MiB")
        for name, value in plan["settings"].items():
            if value is not None:
                print(printable(f"{name:>24}  {value}"))
        print(printable(plan["command"]))
    return 0


def _plan_of(settings: Settings) -> dict[str, Any]:
    """What a run would be made of."""
    from fedjax_rec.engine.chunks import plan_run
    from fedjax_rec.engine.plan import without_host
    from fedjax_rec.runs.inputs import with_absolute_paths
    from fedjax_rec.runs.resolved import resolve
    from fedjax_rec.runs.setup import set_up

    setup = set_up(with_absolute_paths(complete(settings)), lambda _: None)
    plan = plan_run(setup.algorithm, setup.population)
    plan = plan if settings.client_store is None else without_host(plan)
    return {
        "settings": dataclasses.asdict(resolve(setup.settings, plan, setup.population.num_clients)),
        "clients": setup.population.num_clients,
        "items": setup.split.num_items,
        "events": len(setup.split.items) if setup.stored is None else setup.stored.size.num_events,
        "memory": sum(plan.num_bytes.values()),
        "disk": plan.disk_bytes,
        "command": command_of(settings),
    }


def train(
    settings: Settings,
    folder: Path,
    *,
    resume: bool,
    show: Shown = SAY_ALL,
    on_outcome: Callable[["Outcome"], Any] | None = None,
    fitted: "FittedBaselines | None" = None,
) -> int:
    """Train, evaluate, fill the run folder and print the table; progress goes to standard error.

    A signal ends it in order, and it can go on later if anything was saved.

    Args:
        settings: of the run.
        folder: the run folder, which this process has locked.
        resume: whether to go on from the newest checkpoint in the folder.
        show: what it says.
        on_outcome: called with what was found out, once it is written.
        fitted: central baselines of earlier runs of the same command, as of `run_experiment`.

    Returns:
        the exit status.
    """
    from fedjax_rec.hosts.processes import is_first
    from fedjax_rec.runs.folders import RESUME_COMMAND, has_checkpoints
    from fedjax_rec.training.checkpoints.manager import Paused

    try:
        return _train(settings, folder, resume, show, on_outcome, fitted)
    except (Paused, KeyboardInterrupt) as stop:
        if isinstance(stop, Paused) and not is_first():
            return settings.pause_exit_code
        _tell_notes(stop)
        if has_checkpoints(folder):
            told = str(stop) if isinstance(stop, Paused) else f"{stop or 'interrupted'}: stopped"
            line = f"{told}; go on with: {RESUME_COMMAND} {shlex.quote(str(folder))}"
            print(printable(line)) if show.table else tell(line)  # where JSON or one table of all is printed
            return settings.pause_exit_code
        if (folder / "model.npz").exists():
            tell(f"stopped before the model was evaluated; it is kept in {folder}, where fr.load reads it")
        raise
    except Exception as problem:
        _tell_notes(problem)
        if has_checkpoints(folder):
            tell(f"what was done is saved; go on with: {RESUME_COMMAND} {shlex.quote(str(folder))}")
        elif (folder / "model.npz").exists():
            tell(
                f"the model is trained and kept in {folder}, where fr.load reads it; this failed afterwards:"
            )
        raise


def _tell_notes(problem: BaseException) -> None:
    """What a search had found that ended early, or whose run did."""
    from fedjax_rec.runs.tuning import NOTE

    for note in getattr(problem, "__notes__", ()):
        if note.startswith(NOTE):  # others are jax's
            tell(note)


def _train(
    settings: Settings,
    folder: Path,
    resume: bool,
    show: Shown,
    on_outcome: Callable[["Outcome"], Any] | None,
    fitted: "FittedBaselines | None",
) -> int:
    from fedjax_rec.engine.devices import use_cores
    from fedjax_rec.hosts.processes import is_first
    from fedjax_rec.runs import report, run_folder
    from fedjax_rec.runs.experiment import run_experiment
    from fedjax_rec.training.progress import progress_bar

    with contextlib.suppress(RuntimeError):  # jax has started: `devices` is checked against what there is
        use_cores(cache=settings.cache)
    writes = is_first()
    show = show if writes else Shown(table=False, progress=False)
    checkpoint = _checkpoints(settings, folder, say=tell if show.progress else str)
    outcome = run_experiment(
        settings,
        on_stage=stage if show.progress else lambda _: raise_if_stopped(),
        on_block=progress_bar(file=Unfailing()) if show.progress else None,
        on_trained=(lambda trained: run_folder.save_trained(trained, folder)) if writes else None,
        checkpoint=checkpoint,
        resume=resume,
        fitted=fitted,
    )
    if writes:
        run_folder.save_results(outcome, folder, on_message=tell)
    if on_outcome is not None:
        on_outcome(outcome)
    if show.json:
        print(json.dumps(run_folder.result_of(outcome) | {"run_folder": str(folder)}, indent=2))
    if not show.table:
        return 0
    for line in outcome.split.log:
        print(line)
    print(report.result_table(outcome))
    for line in (*report.endings(outcome, FLAGS), *report.remarks(outcome, FLAGS)):
        print(printable(line))
    print(f"run folder: {printable(str(folder))}")
    return 0


def _checkpoints(settings: Settings, folder: Path, say: Callable[[str], Any]) -> Checkpoints | None:
    """Where the run is saved on the way, which is said first."""
    from fedjax_rec.algorithms.registry import entry_of
    from fedjax_rec.runs.folders import RESUME_COMMAND
    from fedjax_rec.runs.resume import checkpoints_of
    from fedjax_rec.training.checkpoints.store import INSTALL_HINT

    checkpoint = checkpoints_of(settings, folder)
    say(f"run folder: {folder}")
    if checkpoint is None:
        missing = f": {INSTALL_HINT}" * bool(settings.checkpoint_minutes)
        say(f"a run that is killed is lost{missing}")
        return None
    how = f"saved every {checkpoint.every} rounds; after a kill or Ctrl-C"
    if checkpoint.every is None:
        how = f"saved every {checkpoint.minutes:g} minutes; after a kill or Ctrl-C"
        if entry_of(settings.algorithm).rounds == 1:  # where all others are the same, the clock saves nothing
            how = f"saved when it is stopped, or every {checkpoint.minutes:g} minutes if rounds differ; then"
    say(f"{how} go on with: {RESUME_COMMAND} {shlex.quote(str(folder))}")
    return checkpoint._replace(on_message=tell)
