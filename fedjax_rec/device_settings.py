"""What the settings say of devices: which clients fail, sleep or come late, and whether rounds wait for them.

Values are looked up by the names of the settings, which are those of the flags; errors name the flags. The checks
are those of `Faults` and `FedBuff`, and of what means nothing without something else.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_rec.aggregators import total
from fedjax_rec.asynchronous import FedBuff, check_fedbuff
from fedjax_rec.faults import Faults, check_faults

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
_NEEDS = {  # without any of these, a setting changes nothing
    "rounds_per_day": ("awake",),
    "partial_work": ("deadline",),
    "device_spread": ("deadline", "keep_first", "async_buffer"),
    "device_jitter": ("deadline", "keep_first", "async_buffer"),
    "concurrency": ("async_buffer",),
    "max_staleness": ("async_buffer",),
    "staleness_exponent": ("async_buffer",),
}


class Devices(NamedTuple):
    """How clients take part: by default all who are drawn, with all of their work."""

    faults: Faults | None = None
    asynchronous: FedBuff | None = None


def devices_of(values: Mapping[str, Any], *, private: bool = False) -> Devices:
    """Which clients fail, sleep or come late, and whether rounds wait for them.

    Args:
        values: settings by name; None, or no entry, where nothing was given.
        private: whether the server adds noise.

    Returns:
        faults, or asynchronous rounds, or neither.

    Raises:
        ValueError: if a value is out of range, or means nothing without or beside another, naming the flag.

    Example:
        >>> devices_of({"drop_out": 0.1, "device_spread": None}).faults.drop_out
        0.1
        >>> devices_of({"async_buffer": 5}).asynchronous.concurrency
        100
        >>> devices_of({"concurrency": 5})
        Traceback (most recent call last):
        ValueError: --concurrency=5 changes nothing without --async-buffer
    """
    known = {name: values.get(name) for name in FAULTS | FEDBUFF}
    given = {name: value for name, value in known.items() if value is not None and value is not False}
    for name, others in _NEEDS.items():
        if name in given and not any(other in given for other in others):
            words = " or ".join(flag(other) for other in others)
            raise ValueError(f"{flag(name)}={given[name]} changes nothing without {words}")
    if "async_buffer" in given:
        return Devices(asynchronous=_asynchronous(values, given, private=private))
    faults = Faults(**{FAULTS[name]: value for name, value in given.items()})
    _in_flags(FAULTS, "Faults", check_faults, faults, private=private)
    _check_minimum(faults, values.get("cohort"))
    return Devices(faults=faults if given else None)


def flag(name: str) -> str:
    """The flag of a setting.

    Args:
        name: of the setting.

    Returns:
        with dashes.

    Example:
        >>> flag("drop_out")
        '--drop-out'
    """
    return f"--{name.replace('_', '-')}"


def _asynchronous(values: Mapping[str, Any], given: Mapping[str, Any], *, private: bool) -> FedBuff:
    """FedBuff's rounds, refusing what a cohort would need."""
    for name in given:
        if name not in FEDBUFF:
            raise ValueError(
                f"{flag(name)} is of rounds that wait for a cohort; leave it out, or leave out --async-buffer"
            )
    if values.get("cohort") is not None:
        raise ValueError(
            "--cohort has no meaning for asynchronous rounds, which wait for --async-buffer arrivals; leave it "
            "out for --concurrency, clients under way"
        )
    if values.get("sampler") is not None:
        raise ValueError(
            f"--sampler={values['sampler']} has no meaning for asynchronous rounds, where whoever arrives takes "
            "part; leave it out"
        )
    if private:
        raise ValueError(
            "--async-buffer lets clients take part as they arrive, for which no accountant covers the noise; "
            "leave it out, or train without noise"
        )
    fedbuff = FedBuff(**{FEDBUFF[name]: value for name, value in given.items()})
    _in_flags(FEDBUFF, "FedBuff", check_fedbuff, fedbuff, total())
    return fedbuff


def check_population(devices: Devices, num_clients: int) -> None:
    """Refuse more clients under way than there are.

    Args:
        devices: how clients take part.
        num_clients: N.

    Raises:
        ValueError: naming the flags.

    Example:
        >>> check_population(Devices(asynchronous=FedBuff(buffer=10, concurrency=100)), 105)
        Traceback (most recent call last):
        ValueError: --concurrency=100 and --async-buffer=10 exceed the population of 105 clients; lower one
    """
    fedbuff = devices.asynchronous
    if fedbuff is not None and fedbuff.concurrency + fedbuff.buffer > num_clients:
        raise ValueError(
            f"--concurrency={fedbuff.concurrency} and --async-buffer={fedbuff.buffer} exceed the population of "
            f"{num_clients} clients; lower one"
        )


def _check_minimum(faults: Faults, cohort: int | None) -> None:
    """Refuse what no round can reach."""
    for name, value in (("awake", faults.awake), ("deadline", faults.deadline)):
        if value == 0:
            raise ValueError(f"{flag(name)}={value} lets nobody take part; give a number above 0")
    for name, most in (("keep_first", faults.keep), ("cohort", cohort)):
        if most is not None and faults.minimum > most:
            raise ValueError(
                f"--minimum-cohort={faults.minimum} is more than {flag(name)}={most}: every round would be "
                "skipped; lower it"
            )


def _in_flags(names: Mapping[str, str], kind: str, check: Any, *arguments: Any, **settings: Any) -> None:
    """Call a check, and let its error name flags instead of fields."""
    try:
        check(*arguments, **settings)
    except ValueError as problem:
        text = str(problem)
        for name, field in names.items():
            text = text.replace(f"{kind}.{field}", flag(name))
        raise ValueError(text) from None
