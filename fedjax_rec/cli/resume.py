"""`fedjax-rec resume`: go on with a run that was stopped, killed or damaged."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from fedjax_rec.cli.processes import (
    add_process_flags,
    check_alone,
    folder_of_first,
    is_one_of_several,
    joined,
)
from fedjax_rec.cli.run import train


def add_parser(commands: Any) -> None:
    """Describe `resume` and its flags."""
    parser = commands.add_parser(
        "resume",
        help="go on with a run that was saved on its way",
        description="Go on from the newest sound checkpoint of a run folder, bit for bit as if the run had never "
        "stopped, and write the folder's other files. Damaged checkpoints are named and passed over.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--rounds", type=int, help="rounds to reach in all (default: as many as before)")
    parser.add_argument("--dataset", help="where the data lies now, if it moved: a path or a registered name")
    parser.add_argument("--data-dir", help="the folder that holds a registered data set now")
    parser.add_argument(
        "--pause-exit-code", type=int, help="exit status if a signal stops the run again (default: as before)"
    )
    add_process_flags(parser)


def call(given: argparse.Namespace) -> int:
    """Go on by the settings that the run folder holds."""
    from fedjax_rec.hosts.processes import of_first
    from fedjax_rec.runs.reserve import lock_run_folder
    from fedjax_rec.runs.resume import stored_settings
    from fedjax_rec.runs.settings import Settings

    def read() -> dict[str, Any]:
        settings = stored_settings(given.run, given.rounds, dataset=given.dataset, data_dir=given.data_dir)
        if is_one_of_several(given):
            check_alone(settings)
        return dataclasses.asdict(settings)

    with joined(given):
        settings = Settings(**of_first(read))  # the others need not see the folder
        own = {"dataset": given.dataset, "data_dir": given.data_dir}  # which may lie elsewhere on each host
        settings = dataclasses.replace(
            settings, **{name: one for name, one in own.items() if one is not None}
        )
        if given.pause_exit_code is not None:
            settings = dataclasses.replace(settings, pause_exit_code=given.pause_exit_code)
        with folder_of_first(lambda: lock_run_folder(Path(given.run).absolute())) as folder:
            return train(settings, folder, resume=True)
