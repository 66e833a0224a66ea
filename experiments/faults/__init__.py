"""Faults, injected and counted."""
