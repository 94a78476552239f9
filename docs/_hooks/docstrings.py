# ruff: noqa: INP001 - loaded by its path, not imported
"""Support for the section `Example:` of docstrings, which Google's style calls `Examples:`."""

import re
from typing import Any

from griffe import Extension, Object


class OneExample(Extension):
    """Renames the section `Example:` to `Examples:`, the only name that griffe supports."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401 - the signature of griffe
        """Rename the section before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
