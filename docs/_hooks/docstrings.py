# ruff: noqa: INP001 - loaded by its path, not imported
"""Reads the house's docstring sections: one `Example:` is what Google's style calls `Examples:`."""

import re
from typing import Any

from griffe import Extension, Object


class OneExample(Extension):
    """Shows an `Example:` section as code; griffe knows only the plural."""

    def on_object(self, *, obj: Object, **_: Any) -> None:  # noqa: ANN401 - the signature of griffe
        """Renames the section before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
