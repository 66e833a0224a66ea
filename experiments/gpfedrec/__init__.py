"""The experiment `gpfedrec`; see its README."""
