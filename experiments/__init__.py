"""Experiments: a folder each, with a script, a README, and the numbers to expect."""
