"""Algorithms: one file a paper, in one order: departures, model, client work, server, factory."""
