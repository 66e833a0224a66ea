"""Attacks that promote an item against robust aggregation, on MovieLens 100K."""
