"""Docstrings of this library say "Example:", of which griffe knows the plural alone as a section of code."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Reads "Example:" as "Examples:"."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of what was loaded.

        Args:
            obj: module, class, function or attribute.
        """
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
