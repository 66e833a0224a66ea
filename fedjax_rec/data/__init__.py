"""Data: files, frames and a synthetic population, all turned into columnar `Interactions` (numpy and pandas only)."""
