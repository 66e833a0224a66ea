"""Fitted constants of `runs.machines`, written by `python -m experiments.scaling.fit --write`."""

POINTS = 47
HELD_OUT = 21
MEDIAN_ERROR = 0.102  # relative, on the points held out
WORST_ERROR = 0.287
COEFFICIENTS = {  # seconds a count of `machines.counts_of`
    "round": 0.0,
    "round together": 0.000351,
    "clients": 0.0,
    "rows": 2.168e-08,
    "numbers": 4.983e-10,
    "far rows": 1.144e-08,
    "rows in waves": 1.861e-08,
    "numbers in waves": 3.675e-10,
    "table": 1.267e-09,
    "table together": 5.733e-09,
}
