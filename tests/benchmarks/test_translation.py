"""What `benchmarks/translation.py` measures, in small, and what was held out for it."""

import re
import zipfile
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU, CHRF

import decodekit as dk
from tests.benchmarks.scripts import script

SCRIPT = script("translation")


def archive(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """Pairs as manythings.org has them."""
    with zipfile.ZipFile(folder / "pairs.zip", "w") as made:
        made.writestr("fra.txt", "".join(f"{english}\t{french}\n" for english, french in pairs))
    return folder / "pairs.zip"


def test_no_sentence_is_in_two_parts_not_even_with_other_punctuation(tmp_path: Path) -> None:
    pairs = [
        (f"{word} number {number}{end}", f"{number}{end}")
        for number in range(400)
        for word, end in (("The", "."), ("the", "!"), ("The", "?"))
    ]
    parts = SCRIPT.read_pairs(archive(tmp_path, pairs))
    assert sorted(pairs) == sorted([*parts.train, *parts.validation, *parts.test])
    words = [{" ".join(re.findall(r"\w+", english.lower())) for english, _ in part} for part in parts]
    assert sum(map(len, words)) == len(set.union(*words)) == 400
    assert all(words)


def test_characters_are_composed_and_spaces_are_plain(tmp_path: Path) -> None:
    path = archive(tmp_path, [("Come  here!", "Viens,\u00a0e\u0301coute\u202f!")])
    assert SCRIPT.read_pairs(path).train == [("Come here!", "Viens, écoute !")]


def test_all_translations_of_a_sentence_are_its_references() -> None:
    found = SCRIPT.references([("a", "x"), ("b", "y"), ("a", "z")])
    assert found == {"a": ["x", "z"], "b": ["y"]}
    assert SCRIPT.streams(list(found.values())) == [["x", "y"], ["z", None]]


@pytest.mark.parametrize("metric", [BLEU, CHRF])
def test_any_of_the_references_is_right(metric: type) -> None:
    wanted = [["le chat est assis ici", "un chat est assis là"], ["où est la gare du nord ?"]]
    found = SCRIPT.measured(metric(), ["un chat est assis là", "où est la gare du nord ?"], wanted)
    assert (found["score"], found["interval"]) == (100, 0)
    assert "nrefs:var" in found["signature"]


@pytest.mark.parametrize("strategy", SCRIPT.STRATEGIES, ids=lambda strategy: strategy.name)
def test_every_strategy_translates_in_the_sentences_order_whatever_the_batches(strategy: object) -> None:
    model, sources = dk.load("en-fr"), ["Where is she?", "I love you.", "He is reading a book."]
    whole, apart = (SCRIPT.translate(model, strategy, sources, size) for size in (3, 1))
    assert [one.text for one in whole.translations] == [one.text for one in apart.translations]
    row = SCRIPT.summary(strategy, whole, [["Où est-elle ?"], ["Je t'aime."], ["Il lit un livre."]])
    assert row["name"] == strategy.name
    assert row["mean_log_prob"] < 0
