"""Federated ALS beside central iALS: no price of federation."""
