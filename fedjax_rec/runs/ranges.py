"""What a setting may be: of which type, one of which choices, from what to what."""

import dataclasses
import math
from typing import Any, get_args

from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.errors import ParameterError
from fedjax_rec.runs.availability import FAULTS, FEDBUFF

_LEAST = {
    "dim": 1, "num_negatives": 1, "batch_size": 1, "local_epochs": 1, "cohort": 1, "rounds": 1, "eval_every": 1,
    "lanes": 1, "devices": 1, "num_candidates": 1, "min_user_events": 0, "seed": 0, "protocol_seed": 0,
    "patience": 1, "min_rounds": 0, "tune": 1, "checkpoint_every": 1, "checkpoint_minutes": 0,
    "pause_exit_code": 0, "fold_in_epochs": 0, "stream_clients": 0,
    "fairness": 0, "size_cap": 1, "capacity": 1,
    "regularisation": 0, "prox": 0, "init_scale": 0, "learning_rate": 0, "max_seconds": 0,
    "server_learning_rate": 0, "core": 0,
}  # fmt: skip
_MOST = {
    "seed": 2**32 - 1,
    "protocol_seed": 2**32 - 1,
    "rounds": 10**6,
    "eval_every": 10**6,
    "pause_exit_code": 255,
}


MAX_SEEDS = 10_000  # of one command
_MOST_BY_TYPE = {int: 2**31 - 1, float: 3.4028235e38}  # what the devices hold


def _check_type(field: dataclasses.Field, value: Any) -> None:
    """Refuse values of another type, which come from Python or from a stored configuration."""
    kinds = get_args(field.type) or (field.type,)
    kinds = (*kinds, int) if float in kinds else kinds
    if type(value) not in kinds:
        wanted = kinds[0].__name__
        template = (
            f"{{{field.name}}} must be of type {wanted}, not {{value!r}} of type {type(value).__name__}"
        )
        raise ParameterError(template, value=value)


def check_value(field: dataclasses.Field, value: Any) -> None:
    """Refuse a value of another type, that is no choice, or out of range.

    Args:
        field: of the settings; its metadata hold the choices.
        value: of it; None where nothing was given.

    Raises:
        ValueError: naming the setting, the value and what may stand there.

    Example:
        >>> from fedjax_rec.runs.settings import Settings
        >>> check_value(Settings.__dataclass_fields__["dim"], 0)
        Traceback (most recent call last):
        ValueError: dim must be at least 1, not 0
    """
    name = field.name
    _check_type(field, value)
    choices = field.metadata["choices"]
    if choices and value is not None and value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ValueError(f"unknown {name} {value!r}; {hint}known: {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        name = f"{{{name}}}" if name in FAULTS | FEDBUFF else name
        raise ParameterError(f"{name} must be a finite number, not {value}")
    most = _MOST.get(name, _MOST_BY_TYPE.get(type(value)))
    if most is not None and value is not None and value > most:
        raise ParameterError(f"{{{name}}} must be at most {most:,}, not {value:,}")
    if name == "patience_share" and value is not None and not 0 < value < 1:
        raise ValueError(f"patience_share must be between 0 and 1, not {value}")
    if name in _LEAST and value is not None and not value >= _LEAST[name]:
        raise ValueError(f"{name} must be at least {_LEAST[name]}, not {value}")
