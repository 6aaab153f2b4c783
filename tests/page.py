"""Reads a page of cards: its elements, and the facts that its script draws from."""

import base64
import hashlib
import json
import re
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Every start tag with its attributes, what its elements of JSON hold, and its script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(self.text)
        self.close()
        assert self.open == [], "every element is closed"
        found = {
            attributes.get("id"): text for attributes, text in zip(self.named("script"), self.scripts, strict=True)
        }
        self.cards: list[dict[str, Any]] = json.loads(found["facts"])
        self.labels: list[str] = json.loads(found["labels"])
        self.images: dict[str, Any] = json.loads(found["images"])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @cached_property
    def thumbnails(self) -> list[bytes]:
        """Those of the cards that have one, in the cards' order."""
        numbers = [card["image"] for card in self.cards if "image" in card]
        if self.images["folder"] is None:
            return [base64.b64decode(self.images["inside"][number]) for number in numbers]
        folder = Path(str(self.path.parent)) / unquote_to_bytes(self.images["folder"]).decode(
            errors="surrogateescape"
        )
        return [(folder / f"{number}.jpg").read_bytes() for number in numbers]

    def shown_by(self) -> dict[str, list[int]]:
        """Which cards each button shows, as the page's script has it."""
        return {
            f"{button['data-key']} {button['data-value']}".strip(): [
                number for number, card in enumerate(self.cards) if is_shown(button, card)
            ]
            for button in self.named("button")
            if "data-key" in button
        }

    def check_that_it_loads_nothing(self) -> None:
        """Its policy allows its own script alone, and no element names anything else."""
        policy = str(self.named("meta")[1]["content"])
        digest = base64.b64encode(hashlib.sha256(self.scripts[-1].encode()).digest()).decode()
        assert policy.startswith("default-src 'none'; ")
        assert f"script-src 'sha256-{digest}';" in policy
        text = self.text.replace("http://www.w3.org/2000/svg", "")  # a name, that is never fetched
        for jpeg in self.images["inside"]:
            text = text.replace(jpeg, "")  # in Base64, where anything may stand
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
        for tag, attributes in self.tags:
            assert tag not in ("link", "iframe", "object", "embed", "base")
            assert (attributes.get("href") or "#").startswith("#")
            assert "src" not in attributes
            assert not [name for name in attributes if name.startswith("on")]


def is_shown(button: dict[str, str | None], card: dict[str, Any]) -> bool:
    key, value = str(button["data-key"]), button["data-value"]
    return any(key in facts and (value == "" or str(facts[key]) == value) for facts in card.get("boxes", [card]))
