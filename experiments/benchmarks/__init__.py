"""Benchmarks: what is measured, against what, and the notes of what was tried."""
