"""Look a name up in a table, and say which name was probably meant.

Everything of which there are several (codecs, algorithms, transports) is a plain dict from its name to what makes
it. This is the one way such a dict is read, so that a typing mistake is answered the same way everywhere:

    >>> find("codec", "edne", {"eden": 1, "identity": 2})
    Traceback (most recent call last):
    fedge.errors.UnknownName: unknown codec 'edne'; did you mean 'eden'? (known: eden, identity)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fedge.errors import UnknownName

T = TypeVar("T")


def find(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return ``table[name]``.

    Raises:
        UnknownName: if ``name`` is not in ``table``; the message calls the table a table of ``kind``.
    """
    try:
        return table[name]
    except KeyError:
        raise UnknownName(kind, name, table) from None
