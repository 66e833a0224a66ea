"""Where what clients keep waits: in host memory, or in files, by choice or where memory would not hold it."""

from pathlib import Path

from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.engine.plan import fits, without_host
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.team import Team
from fedjax_rec.types import ChunkedRound, Plan


def place_clients(
    client_store: str | Path | None,
    chunked: ChunkedRound | None,
    plan: Plan,
    checkpoint: Checkpoints | None,
    team: Team,
) -> tuple[Path | None, Plan]:
    """Choose where what clients keep waits; files beside the checkpoints, chosen by itself, are told there.

    Args:
        client_store: a folder that was asked for; None for files where memory would not hold it.
        chunked: a round in chunks; None for rounds in one piece, where it is on the devices.
        plan: of the run, all of it in memory.
        checkpoint: where the run is saved, if it is.
        team: the processes.

    Returns:
        the folder of the files, None for host memory; the plan of that.

    Raises:
        ParameterError: if files do not go with what was asked for.
    """
    if client_store is not None:
        check_together(
            {
                Feature.CLIENT_STORE: str(client_store),
                Feature.ONE_PIECE: chunked is None,
                Feature.DISTRIBUTED: team.several,
            }
        )
        return Path(client_store), without_host(plan)
    in_files = without_host(plan)
    if checkpoint is None or chunked is None or team.several or fits(plan) or not fits(in_files):
        return None, plan
    folder = Path(checkpoint.folder)
    checkpoint.on_message(
        f"memory would not hold what all clients keep, {in_files.disk_bytes / 2**30:,.1f} GiB at most: it waits "
        f"in files in {folder}"
    )
    return folder, in_files
