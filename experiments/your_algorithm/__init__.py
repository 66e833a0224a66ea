"""An algorithm to copy: one file, one client's work, all laws kept."""
