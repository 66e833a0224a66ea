"""What the settings say of devices: which clients fail, sleep or come late, and whether rounds wait for them.

Values are looked up by the names of the settings. The checks are those of `Faults` and `FedBuff`, and of numbers
that no round can reach; what goes with what stands in `compatibility`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_rec.errors import ParameterError
from fedjax_rec.federation.asynchronous import FedBuff, check_fedbuff
from fedjax_rec.federation.faults import Faults, check_faults

FAULTS = {  # setting: its field of `Faults`
    "drop_out": "drop_out",
    "awake": "awake",
    "rounds_per_day": "day",
    "deadline": "deadline",
    "partial_work": "partial",
    "keep_first": "keep",
    "minimum_cohort": "minimum",
    "device_spread": "spread",
    "device_jitter": "jitter",
}
FEDBUFF = {  # setting: its field of `FedBuff`
    "async_buffer": "buffer",
    "concurrency": "concurrency",
    "max_staleness": "max_staleness",
    "staleness_exponent": "exponent",
    "device_spread": "spread",
    "device_jitter": "jitter",
}


class Devices(NamedTuple):
    """How clients take part: by default all who are drawn, with all of their work."""

    faults: Faults | None = None
    asynchronous: FedBuff | None = None


def devices_of(values: Mapping[str, Any]) -> Devices:
    """Which clients fail, sleep or come late, and whether rounds wait for them.

    Args:
        values: settings by name; None, or no entry, where nothing was given.

    Returns:
        faults, or asynchronous rounds, or neither.

    Raises:
        ParameterError: if a value is out of range.

    Example:
        >>> devices_of({"drop_out": 0.1, "device_spread": None}).faults.drop_out
        0.1
        >>> devices_of({"async_buffer": 5}).asynchronous.concurrency
        100
    """
    if values.get("async_buffer") is not None:
        fedbuff = FedBuff(**_given(values, FEDBUFF))
        check_fedbuff(fedbuff)
        return Devices(asynchronous=fedbuff)
    given = _given(values, FAULTS)
    faults = Faults(**given)
    check_faults(faults)
    _check_minimum(faults, values.get("cohort"))
    return Devices(faults=faults if given else None)


def _given(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """What was given, by field."""
    found = {field: values.get(setting) for setting, field in fields.items()}
    return {field: value for field, value in found.items() if value is not None and value is not False}


def check_population(devices: Devices, num_clients: int) -> None:
    """Refuse more clients under way than there are.

    Args:
        devices: how clients take part.
        num_clients: N.

    Raises:
        ParameterError: if there are.

    Example:
        >>> check_population(Devices(asynchronous=FedBuff(buffer=10, concurrency=100)), 105)
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: concurrency=100 and async_buffer=10 exceed the population of 105 ...
    """
    fedbuff = devices.asynchronous
    if fedbuff is not None and fedbuff.concurrency + fedbuff.buffer > num_clients:
        raise ParameterError(
            f"{{concurrency}}={fedbuff.concurrency} and {{async_buffer}}={fedbuff.buffer} exceed the population "
            f"of {num_clients} clients; lower one"
        )


def _check_minimum(faults: Faults, cohort: int | None) -> None:
    """Refuse what no round can reach."""
    for name, value in (("awake", faults.awake), ("deadline", faults.deadline)):
        if value == 0:
            raise ParameterError(f"{{{name}}}={value} lets nobody take part; give a number above 0")
    for name, most in (("keep_first", faults.keep), ("cohort", cohort)):
        if most is not None and faults.minimum > most:
            raise ParameterError(
                f"{{minimum_cohort}}={faults.minimum} is more than {{{name}}}={most}: every round would be "
                "skipped; lower it"
            )
