"""Import objects by name, so that nothing is imported before it is needed."""

from importlib import import_module
from typing import Any


def load_object(target: str) -> Any:
    """Import the object that `module:attribute` names.

    Raises:
        ImportError: if the module, or something that it imports, is missing.
        AttributeError: if the module has no such attribute.
    """
    module, attribute = target.split(":")
    return getattr(import_module(module), attribute)
