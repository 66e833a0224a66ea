"""Fitted constants of `runs.machines`, written by `python -m experiments.scaling.fit --write`."""

POINTS = 47
HELD_OUT = 21
MEDIAN_ERROR = 0.118  # relative, on the points held out
WORST_ERROR = 0.500
COEFFICIENTS = {  # seconds a count of `machines.counts_of`
    "round": 0.0001878,
    "round together": 0.0001919,
    "clients": 0.0,
    "rows": 2.271e-08,
    "numbers": 5.194e-10,
    "far rows": 9.088e-09,
    "rows in waves": 2.267e-08,
    "numbers in waves": 4.127e-10,
    "table": 9.427e-10,
    "table together": 3.62e-09,
}
