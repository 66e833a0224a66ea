"""The experiment `fedrap`; see its README."""
