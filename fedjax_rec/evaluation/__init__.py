"""Evaluation: one leak-free protocol, ranking on device, metrics and baselines."""
