"""Fitted constants of `runs.machines`, written by `python -m experiments.scaling.fit --write`."""

POINTS = 47
HELD_OUT = 21
MEDIAN_ERROR = 0.149  # relative, on the points held out
WORST_ERROR = 0.469
COEFFICIENTS = {  # seconds a count of `machines.counts_of`
    "round": 0.0001546,
    "clients": 0.0,
    "rows": 2.205e-08,
    "numbers": 4.714e-10,
    "far rows": 1.238e-08,
    "rows in waves": 2.22e-08,
    "numbers in waves": 4.129e-10,
    "table": 1.539e-09,
}
