"""Data: files, frames and a synthetic population, all as columnar `Interactions` (numpy and pandas only)."""
