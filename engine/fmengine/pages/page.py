"""Fill the templates of pages: one look for all, and nothing that is loaded from elsewhere.

Whatever a template is given is text, unless this room made it. A policy in each page allows its own script and
style, pictures of its own and beside it, and nothing else: no text of a stranger's can run or load anything.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

TONES = 6  # colours of labels, in the model's order, from the beginning again for more


def load_template(name: str) -> Template:
    """Load a template, such as `sheet.html`."""
    return _make_environment().get_template(name)


def to_script_json(value: Any) -> Markup:
    """Write a value as JSON that stays data inside a `<script>` element, whatever its texts hold."""
    return htmlsafe_json_dumps(value, dumps=json.dumps, ensure_ascii=False, separators=(",", ":"))


def choose_tone(label: str, labels: Sequence[str]) -> str:
    """Choose the class of a label's colour; one that is not the model's, such as `unsure`, has none."""
    return f"tone{labels.index(label) % TONES}" if label in labels else "aside"


@cache
def _make_environment() -> Environment:
    loader = PackageLoader(__package__, "templates")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"json": to_script_json, "percent": "{:.1%}".format, "count": "{:,}".format}
    made.globals |= {"read_asset": _read_asset, "hash_asset": _hash_asset}
    return made


def _read_asset(name: str) -> Markup:
    """Read a style or script of this room as it is."""
    environment = _make_environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])  # our own file, and no stranger's text


def _hash_asset(name: str) -> str:
    """Hash a script as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(_read_asset(name).encode()).digest()).decode()
