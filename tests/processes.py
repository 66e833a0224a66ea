"""What processes that a test starts find in their environment."""

import os


def user_environment() -> dict[str, str]:
    """This process's, with one device, as a user has it; how quickly programs are compiled stays."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    return {**os.environ, "XLA_FLAGS": " ".join(flags)}
