"""The flags of a run on several processes, how one joins them, and how it leaves: in order, or at once."""

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from fedjax_rec.cli.argument_parser import Parser
from fedjax_rec.cli.output import tell
from fedjax_rec.cli.parser import in_flags
from fedjax_rec.cli.supervisor import FLAGS
from fedjax_rec.compatibility import RunFeature, check_together
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.checkpoints.signals import StopSignal

LINGER = (
    2.0  # seconds for which process 0 outlives an error, for the others die with it and would not say why
)


def add_process_flags(parser: Parser) -> None:
    """Describe the flags.

    Args:
        parser: of `run` or `resume`.

    Example:
        >>> parser = Parser()
        >>> add_process_flags(parser)
        >>> parser.parse_args(["--processes", "2"]).processes
        2
    """
    group = parser.add_argument_group("several processes")
    group.add_argument(
        FLAGS[0],
        action="store_true",
        help="one of several processes, which jax finds by the cluster they are on",
    )
    group.add_argument(FLAGS[1], metavar="HOST:PORT", help="of process 0, where no cluster is found")
    group.add_argument(FLAGS[2], type=int, metavar="N", help="how many there are")
    group.add_argument(FLAGS[3], type=int, metavar="K", help="which one this is, 0 to N - 1")
    group.add_argument(
        FLAGS[4], type=float, default=60.0, metavar="SECONDS", help="until all have come (default: 60)"
    )


def is_one_of_several(given: argparse.Namespace) -> bool:
    """Whether a run was asked for that has several processes.

    Args:
        given: the parsed arguments.

    Returns:
        True or False.

    Example:
        >>> is_one_of_several(argparse.Namespace(distributed=True, coordinator=None))
        True
    """
    values = [getattr(given, name, None) for name in ("coordinator", "processes", "process_id")]
    return bool(getattr(given, "distributed", False)) or any(value is not None for value in values)


def check_alone(settings: Settings, *, several_runs: bool = False) -> None:
    """Refuse settings that do not go with several processes.

    Args:
        settings: of the run.
        several_runs: whether there are more of them.

    Raises:
        ParameterError: if one does not.

    Example:
        >>> check_alone(Settings(tune=4))
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: settings are tried (tune=4) by one process, and here are several; ...
    """
    point = settings.evaluation_point
    check_together(
        {
            RunFeature.DISTRIBUTED: "several",
            RunFeature.SEVERAL_RUNS: several_runs,
            RunFeature.TUNE: settings.tune,
            RunFeature.SECRET_NOISE: settings.secret_noise,
            RunFeature.NOISE: settings.private,
            RunFeature.CLIP: settings.clip,
            RunFeature.EVALUATION_POINT: None if point == "server" else point,
            RunFeature.STRONG: settings.splitter == "strong",
        }
    )


@contextlib.contextmanager
def joined(given: argparse.Namespace, *, cache: bool = True) -> Iterator[None]:
    """Join the processes of a run for as long as it takes; on an error, say it in one line and end at once.

    Args:
        given: the parsed arguments.
        cache: whether compiled programs are kept on the disk.

    Yields:
        nothing; of a run on one process without having done anything.

    Raises:
        ValueError, OSError: if the processes cannot join.
    """
    if not is_one_of_several(given):
        yield
        return
    import jax

    from fedjax_rec.engine.devices import use_cores
    from fedjax_rec.hosts.processes import check_same, exchange, initialize_distributed

    if given.process_id == 0 and not getattr(given, "quiet", False):  # elsewhere nobody knows which one it is
        count = f" {given.processes}" if given.processes else ""
        tell(f"waiting until all{count} processes have come, {given.join_timeout:g} s at most")
    initialize_distributed(given.coordinator, given.processes, given.process_id, timeout=given.join_timeout)
    try:
        with contextlib.suppress(RuntimeError):  # jax was told how many devices there are
            use_cores(cache=cache)
        check_same(lambda: {"command": given.command})  # what they exchange next depends on it
        yield
        exchange("done")  # nobody leaves while process 0 writes
        jax.distributed.shutdown()  # all at once: who is gone without it ends the others
    except (ValueError, OSError, ImportError) as problem:
        with contextlib.suppress(SystemExit):
            Parser().error(in_flags(problem))
        _leave(given, 2)
    except KeyboardInterrupt as stop:
        tell(f"interrupted{f' by {stop}' if isinstance(stop, StopSignal) else ''}")
        _leave(given, stop.status if isinstance(stop, StopSignal) else 130)
    except SystemExit as end:
        _leave(given, end.code if isinstance(end.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        _leave(given, 1)


def _leave(given: argparse.Namespace, status: int) -> NoReturn:
    """End without waiting for processes that may be gone, which jax would do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if not given.process_id:
        time.sleep(LINGER)
    os._exit(status)


@contextlib.contextmanager
def folder_of_first(make: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """The run folder, which process 0 makes and holds; the others are told where it is.

    Args:
        make: reserves or locks it.

    Yields:
        its path, which only process 0 may write.

    Raises:
        ValueError, OSError: as `make` does, in every process.
    """
    from fedjax_rec.hosts.processes import of_first

    with contextlib.ExitStack() as stack:
        yield Path(of_first(lambda: str(stack.enter_context(make()))))
