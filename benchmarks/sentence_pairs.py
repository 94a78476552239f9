"""The sentence pairs of manythings.org/anki, split into training, validation and test."""

import hashlib
import re
import unicodedata
import zipfile
from pathlib import Path
from typing import NamedTuple


class Pairs(NamedTuple):
    """English sentences and their translations, in three parts that share no English sentence."""

    train: list[tuple[str, str]]
    validation: list[tuple[str, str]]
    test: list[tuple[str, str]]


def clean(text: str) -> str:
    """The text with composed characters, and with one plain space for every run of white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_pairs(path: Path) -> Pairs:
    """The pairs in three parts; a hash of the words puts a hundredth each into validation and test."""
    parts = Pairs([], [], [])
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("fra.txt").decode().splitlines()
    for line in lines:
        english, french = (clean(text) for text in line.split("\t")[:2])
        # Sentences that differ only in punctuation must be in the same part.
        words = " ".join(re.findall(r"\w+", english.casefold()))
        place = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") % 100
        part = parts.validation if place == 0 else parts.test if place == 1 else parts.train
        part.append((english, french))
    return parts


def references(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """All translations of every sentence."""
    found: dict[str, list[str]] = {}
    for english, french in pairs:
        found.setdefault(english, []).append(french)
    return found
