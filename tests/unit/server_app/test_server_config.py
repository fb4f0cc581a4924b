"""The documented configuration is a valid one, and leaves no key out."""

from __future__ import annotations

import tomllib
from pathlib import Path

from schemas.base import parse_toml
from schemas.config import ServerConfig

EXAMPLE = Path(__file__).parents[3] / "deploy" / "server.toml"


def test_the_example_documents_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert parse_toml(ServerConfig, text, "server.toml") == ServerConfig()
    assert tomllib.loads(text).keys() == ServerConfig.model_fields.keys()
