"""Fitted constants."""

POINTS = 0
HELD_OUT = 0
MEDIAN_ERROR = 0.0
WORST_ERROR = 0.0
COEFFICIENTS = {
    "round": 1e-3,
    "clients": 1e-6,
    "rows": 1e-8,
    "numbers": 1e-9,
    "far rows": 0.0,
    "rows in waves": 1e-8,
    "numbers in waves": 1e-9,
    "table": 1e-9,
}
