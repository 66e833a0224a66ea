"""Differential privacy: what is spent, and what spends it."""
