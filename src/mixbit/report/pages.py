"""Make a page of HTML from a template.

What it shows may come from anyone: every text is escaped, and a policy in the page lets a browser run our own script
alone and load nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mixbit.core import clean
from mixbit.report import words


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The text of the page: the template of that name with these values, and our own style and script."""
    script, style = _own_text("script.js"), _own_text("style.css")
    environment = Environment(
        loader=PackageLoader("mixbit.report", "."),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    own = {
        "style": Markup(style),
        "script": Markup(script),
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template(template).render({**values, **own})


def _own_text(name: str) -> str:
    return (files("mixbit.report") / name).read_text(encoding="utf-8").strip()


def _printable(value: Any) -> Any:
    """Texts with control characters in escapes, which HTML has no place for; markup of our own as it is."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
