"""What `pyproject.toml` cannot say by itself: the README as an index shows it, and the project's addresses."""

import re
import tomllib
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def describe(readme: str, address: str, version: str) -> str:
    """The README away from its checkout.

    Args:
        readme: Markdown with links into the checkout.
        address: of the project, "" if it has none.
        version: that the links should show.

    Returns:
        the text with links that lead there; without an address links are their words, pictures what they show.
    """

    def place(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if not address:
            return f"*{words}*" if picture else words
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/v{version}/{path})"

    return LINK.sub(place, readme)


def addresses(address: str) -> dict[str, str]:
    """The project's pages by name, for an index.

    Args:
        address: of the project, "" if it has none.

    Returns:
        none without an address.
    """
    pages = {"Source": "", "Changelog": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
    return {name: address + path for name, path in pages.items()} if address else {}


def main() -> None:
    """Build, as pip asks for it."""
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    address = settings["tool"]["fedjax_rec"]["address"].rstrip("/")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=describe(readme, address, settings["project"]["version"]),
        long_description_content_type="text/markdown",
        project_urls=addresses(address),
    )


if __name__ == "__main__":
    main()
