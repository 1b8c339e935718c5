"""Docstrings as the site shows them: powers are no bold type, and of ``:class:`Name` `` the name stays."""

import re
from typing import Any

import griffe


class PlainDocstrings(griffe.Extension):
    """Changes what was read of the source, before it is rendered."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of every module, class, function and attribute."""
        if obj.docstring:
            named = re.sub(r":(?:class|func|data|mod|meth|attr):`", "`", obj.docstring.value)
            obj.docstring.value = re.sub(r"\*\*(?=[\d(a-z])", r"\*\*", named)
