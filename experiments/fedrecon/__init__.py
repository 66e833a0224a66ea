"""Federated reconstruction for users who never took part in training."""
