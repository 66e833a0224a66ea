"""Every registered algorithm under one protocol, tuned with one budget."""
