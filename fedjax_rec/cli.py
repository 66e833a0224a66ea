"""The command line: `fedjax-rec run`, `resume`, `baselines`, `compare`, `data` and `doctor`.

Errors are one line on standard error and exit status 2. Settings become flags by their names, `--learning-rate`
for `learning_rate`, with their defaults in `--help`.
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from fedjax_rec.algorithms.registry import accepted
from fedjax_rec.settings import BY_ALGORITHM, Settings

PROGRAM = "fedjax-rec"
CENTRAL_GROUPS, CENTRAL_FIELDS = ("data", "protocol"), ("seed", "out")  # the settings of `baselines`
DEFAULT_ALGORITHM = Settings.algorithm
FORMATS = ("table", "csv", "json", "latex", "markdown")  # of `compare`


class _Parser(argparse.ArgumentParser):
    """One-line errors that name the nearest known flag or command."""

    def error(self, message: str) -> NoReturn:
        fail(message)

    def known(self) -> list[str]:
        """The flags of this command, each by its first name."""
        flags = [action.option_strings[0] for action in self._actions if action.option_strings]
        return [flag for flag in flags if flag != "-h"]

    def command(self, name: str) -> "_Parser":
        """The parser of one command."""
        return next(action.choices[name] for action in self._actions if isinstance(action.choices, dict))


def fail(message: str) -> NoReturn:
    """End with a one-line error and status 2.

    Args:
        message: what was wrong and what to do; only its first line is shown.

    Raises:
        SystemExit: always.

    Example:
        >>> fail("no")
        Traceback (most recent call last):
        SystemExit: 2
    """
    first = (message.strip().splitlines() or ["unknown error"])[0]
    print(f"{PROGRAM}: error: {first}", file=sys.stderr)
    raise SystemExit(2)


def build_parser() -> _Parser:
    """The parser of all commands.

    Returns:
        the parser.

    Example:
        >>> build_parser().parse_args(["run", "--rounds", "3"]).rounds
        3
    """
    parser = _Parser(prog=PROGRAM, description="Simulate federated recommender systems.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    run = commands.add_parser(
        "run",
        help="train, evaluate and write a run folder",
        description="Train a federated recommender, evaluate it and write a run folder. Without arguments it "
        "trains on the embedded synthetic population.",
        allow_abbrev=False,
    )
    _add_settings(run)
    resume = commands.add_parser(
        "resume",
        help="go on with a run that was saved with --checkpoint-every",
        description="Go on from the newest sound checkpoint of a run folder, bit for bit as if the run had never "
        "stopped, and write the folder's other files. Damaged checkpoints are named and passed over.",
        allow_abbrev=False,
    )
    resume.add_argument("run", metavar="RUN", help="the run folder")
    resume.add_argument("--rounds", type=int, help="rounds to reach in all (default: as many as before)")
    data = commands.add_parser("data", help="list, describe or download data sets", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    actions.add_parser("ls", help="list the registered data sets", allow_abbrev=False)
    for name, text in (("describe", "counts, origin and licence"), ("fetch", "download into the cache")):
        action = actions.add_parser(name, help=text, allow_abbrev=False)
        action.add_argument("dataset", help="a registered name, or a path")
        if name == "describe":
            action.add_argument("--data-dir", help="folder that holds the data (default: the cache)")
    _add_baselines(commands)
    _add_compare(commands)
    doctor = commands.add_parser(
        "doctor",
        help="versions, devices, and how fast item rows are added up here",
        description="Show versions and devices, time three ways of adding item rows on the default device, and "
        "warn of what makes runs slow here. Takes a few seconds.",
        allow_abbrev=False,
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _add_baselines(commands: Any) -> None:
    baselines = commands.add_parser(
        "baselines",
        help="fit central baselines on the split of a run",
        description="Fit central recommenders, which see all training events at once, on the split that `run` has "
        "with the same flags; choose their settings on validation, measure them, and write a folder, by default "
        "runs/DATASET-baselines-N.",
        allow_abbrev=False,
    )
    _add_settings(baselines, CENTRAL_GROUPS, CENTRAL_FIELDS)
    methods = baselines.add_argument_group("methods")
    methods.add_argument(
        "--only", default="all", metavar="NAMES", help="methods with commas between them (default: all)"
    )
    methods.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="METHOD.SETTING=NUMBER",
        help="use this setting, such as ease.regularisation=300, and do not choose the method's settings on "
        "validation; may be repeated",
    )


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare finished runs of one protocol",
        description="Compare run folders with the first of them: means with bootstrap intervals over users, "
        "paired differences, and tests adjusted over the table. Runs of different protocols are refused.",
        allow_abbrev=False,
    )
    compare.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run folders, 2 or more; FOLDER:METHOD is a central baseline in it, a folder of `baselines` is all",
    )
    compare.add_argument(
        "--metric",
        default="ndcg@10",
        help="hr@k, ndcg@k, mrr@k, mrr or auc; several with commas (default: ndcg@10)",
    )
    compare.add_argument("--ranking", default="full", help="full, or sampled99 (default: full)")
    compare.add_argument(
        "--format", default="table", choices=FORMATS, help="how it is written (default: table)"
    )
    compare.add_argument(
        "--group-seeds", action="store_true", help="runs that differ in their seed alone share a row"
    )


def _add_settings(
    parser: argparse.ArgumentParser, only_groups: Sequence[str] = (), only_fields: Sequence[str] = ()
) -> None:
    """Make settings flags: all, or those of some groups and some single ones."""
    groups: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        title = field.metadata["group"]
        if only_groups and title not in only_groups and field.name not in only_fields:
            continue
        group = (
            groups.setdefault(title, parser.add_argument_group(title))
            if title not in groups
            else groups[title]
        )
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} {_default_of(field)}"
        kind = _kind(hints[field.name])
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            choices = field.metadata["choices"]
            shown = "{" + ",".join(choices) + "}" if choices else kind.__name__.upper()
            group.add_argument(flag, type=kind, default=field.default, help=text, metavar=shown)


def _default_of(field: dataclasses.Field) -> str:
    if field.default is not None:
        return f"(default: {field.default})"
    known = accepted(DEFAULT_ALGORITHM) if field.metadata["group"] in BY_ALGORITHM else {}
    value = known.get(field.name)
    return "(default: none)" if value is None else f"(default: by algorithm; {DEFAULT_ALGORITHM} {value})"


def _kind(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        the exit status.

    Raises:
        SystemExit: with status 2 on bad input.

    Example:
        >>> main(["data", "ls"])  # doctest: +ELLIPSIS
        name ...
        0
    """
    parser = build_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        fail(f"unknown setting {unknown[0]!r}; {_suggest(unknown[0], parser.command(given.command))}")
    try:
        commands = {
            "run": _run,
            "resume": _resume,
            "baselines": _baselines,
            "compare": _compare,
            "data": _data,
            "doctor": _doctor,
        }
        return commands[given.command](given)
    except (ValueError, OSError, ImportError) as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing was written", file=sys.stderr)
        return 130


def _suggest(flag: str, parser: _Parser) -> str:
    near = difflib.get_close_matches(flag.split("=", maxsplit=1)[0], parser.known(), n=1, cutoff=0.0)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}see {parser.prog} --help"


def _settings(given: argparse.Namespace) -> Settings:
    """The settings among the arguments of a command; those that it has no flag for are left at their defaults."""
    known = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**{name: value for name, value in vars(given).items() if name in known})


def _run(given: argparse.Namespace) -> int:
    settings = _settings(given)
    from fedjax_rec.run_folder import choose_folder

    folder = choose_folder(settings)
    if settings.checkpoint_every is None:
        return _train(settings, folder)
    return _train_saved(settings, folder, resume=False)


def _resume(given: argparse.Namespace) -> int:
    from fedjax_rec.resume import stored_settings

    return _train_saved(stored_settings(given.run, given.rounds), Path(given.run), resume=True)


def _train_saved(settings: Settings, folder: Path, *, resume: bool) -> int:
    """A run with checkpoints; a signal ends it in order."""
    from fedjax_rec.checkpoints import Paused
    from fedjax_rec.folders import RESUME
    from fedjax_rec.resume import holding

    try:
        with holding(folder):
            return _train(settings, folder, resume=resume)
    except Paused as pause:
        print(f"{pause}; go on with: {RESUME} {folder}")
        return 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; go on with: {RESUME} {folder}", file=sys.stderr)
        return 130


def _train(settings: Settings, folder: Path, *, resume: bool | None = None) -> int:
    from fedjax_rec import report, run_folder
    from fedjax_rec.devices import use_cores
    from fedjax_rec.experiment import run_experiment
    from fedjax_rec.from_settings import advice
    from fedjax_rec.resume import checkpoints_of

    checkpoint = checkpoints_of(settings, folder)
    if checkpoint is not None:
        checkpoint = checkpoint._replace(tell=lambda text: print(f"{PROGRAM}: {text}", file=sys.stderr))
    with contextlib.suppress(RuntimeError):  # jax has started: `devices` is checked against what there is
        use_cores()
    show = report.progress_bar(file=sys.stderr)
    outcome = run_experiment(
        settings,
        on_stage=lambda text: print(text, file=sys.stderr),
        on_block=show,
        checkpoint=checkpoint,
        resume=resume,
    )
    if checkpoint is None:
        folder = run_folder.save(outcome, folder, renumber=settings.out is None)
    else:
        folder = run_folder.save_beside(outcome, folder)
    for line in outcome.split.log:
        print(line)
    print(report.table(outcome))
    for line in report.losses(outcome.history):
        print(line)
    if outcome.history.stopped == "diverged":
        print(f"training diverged after the best round; {advice(settings)}")
    print(f"run folder: {folder}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    from fedjax_rec.compare import compare_runs
    from fedjax_rec.formats import render

    table = compare_runs(
        given.runs,
        metrics=[name.strip() for name in given.metric.split(",")],
        ranking=given.ranking,
        group_seeds=given.group_seeds,
    )
    print(render(table, given.format))
    return 0


def _baselines(given: argparse.Namespace) -> int:
    settings = _settings(given)
    from fedjax_rec import central, report
    from fedjax_rec.evaluation.central import parse_names, parse_settings
    from fedjax_rec.folders import choose_place

    names, fixed = parse_names(given.only), parse_settings(given.set)
    folder = choose_place(settings.out, f"{Path(settings.dataset).stem}-baselines")
    outcome = central.run_central(
        settings, names=names, given=fixed, on_stage=lambda text: print(text, file=sys.stderr)
    )
    folder = central.save_central(outcome, folder, renumber=settings.out is None)
    for line in outcome.split.log:
        print(line)
    print(report.central_table(outcome))
    print(f"folder: {folder}")
    return 0


def _data(given: argparse.Namespace) -> int:
    from fedjax_rec.data import registry

    if given.action == "ls":
        _list(registry.list_datasets())
    elif given.action == "fetch":
        print(registry.fetch(given.dataset, progress=True))
    else:
        dataset = registry.load_dataset(given.dataset, data_dir=given.data_dir, progress=True)
        for name, value in registry.describe(dataset).items():
            print(f"{name:>16}: {_text(value)}")
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from fedjax_rec import doctor

    report = doctor.examine(on_stage=lambda text: print(text, file=sys.stderr))
    print(json.dumps(doctor.as_dict(report), indent=2) if given.json else doctor.render(report))
    return 0


def _list(infos: Sequence[Any]) -> None:
    print(f"{'name':<18} {'users':>8} {'items':>8} {'events':>12}  title")
    for info in infos:
        users, items, events = info.counts[:3]
        print(f"{info.name:<18} {users:>8,} {items:>8,} {events:>12,}  {info.title}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, tuple):
        return " to ".join(_text(part) for part in value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
