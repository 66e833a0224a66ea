"""The experiment `pfedrec`; see its README."""
