"""Accuracy against what clients send."""
