"""Who is asking: bearer tokens of people and credentials of devices.

A secret is 32 random bytes in URL-safe base64. The database holds SHA-256 hashes only (a secret of 256 random bits
needs no slow hash), and looking one up by its hash compares in a time that says nothing about the secret.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping

from aiohttp import web

from schemas.status import Role
from server_app.errors import Refused

ALLOWED: Mapping[Role, frozenset[Role]] = {
    Role.ENROLL: frozenset({Role.ENROLL}),
    Role.VIEWER: frozenset({Role.VIEWER, Role.OPERATOR}),
    Role.OPERATOR: frozenset({Role.OPERATOR}),
}
"""Which tokens satisfy a demand: an operator may look, too."""

_SECRET = re.compile(r"[A-Za-z0-9_-]{32,128}")


def new_secret() -> str:
    """Return a fresh secret of 43 characters."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """Return what is stored instead of ``secret``: 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def bearer(request: web.BaseRequest) -> str:
    """Return the secret in the ``Authorization`` header.

    Raises:
        Refused: 401, there is none, or none that could be ours. The message repeats nothing of it.
    """
    header = request.headers.get("Authorization", "").strip()
    if not header:
        raise Refused(401, "unauthorized", "expected the header Authorization: Bearer <token>, got none")
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer":
        raise Refused(401, "unauthorized", "expected the header Authorization: Bearer <token>, got another scheme")
    if not _SECRET.fullmatch(secret):
        expected = "a token of 32 to 128 letters, digits, '-' and '_'"
        raise Refused(401, "unauthorized", f"expected {expected}, got {len(secret)} characters that are none")
    return secret


def demand(role: Role, secret: str, tokens: Mapping[str, Role]) -> None:
    """Check that ``secret`` allows ``role``.

    Raises:
        Refused: 401 where it is no token of ours, 403 where it allows something else.
    """
    held = tokens.get(hash_secret(secret))
    if held is None:
        raise Refused(401, "unauthorized", f"expected {_a_token(role)}, got one that is unknown")
    if held not in ALLOWED[role]:
        raise Refused(403, "forbidden", f"expected {_a_token(role)}, got one for {held}")


def _a_token(role: Role) -> str:
    article = "an" if role[0] in "aeiou" else "a"
    return f"{article} {role} token"
