"""Fitted constants of `runs.machines`, written by `python -m experiments.scaling.fit --write`."""

POINTS = 15
HELD_OUT = 5
MEDIAN_ERROR = 0.210  # relative, on the points held out
WORST_ERROR = 0.537
COEFFICIENTS = {  # seconds a count of `machines.counts_of`
    "round": 0.0,
    "clients": 3.434e-06,
    "rows": 5.743e-08,
    "numbers": 1.016e-09,
    "far rows": 3.919e-08,
    "rows in waves": 9.094e-08,
    "numbers in waves": 5.202e-10,
    "table": 5.395e-09,
}
