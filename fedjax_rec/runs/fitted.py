"""Fitted constants of `runs.machines`, written by `python -m experiments.scaling.fit --write`."""

POINTS = 15
HELD_OUT = 5
MEDIAN_ERROR = 0.112  # relative, on the points held out
WORST_ERROR = 0.464
COEFFICIENTS = {  # seconds a count of `machines.counts_of`
    "round": 0.0,
    "clients": 0.0,
    "rows": 7.242e-08,
    "numbers": 1.41e-09,
    "far rows": 3.23e-08,
    "rows in waves": 8.478e-08,
    "numbers in waves": 1.189e-09,
    "table": 5.415e-09,
}
