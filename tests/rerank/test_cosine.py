"""Cosine similarity: cases by hand, and the mean embedding that changes nothing."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from tests.rerank.texts import decoded

VECTORS = {"east": [2.0, 0.0], "north": [0.0, 5.0], "north-east": [1.0, 1.0], "nowhere": [0.0, 0.0]}


def embed(texts: list[str]) -> list[list[float]]:
    return [VECTORS[text] for text in texts]


def test_angles_by_hand() -> None:
    found = dk.Cosine(embed).pairwise(["east", "north-east", "nowhere"], ["east", "north"])
    half = math.sqrt(0.5)
    assert found.flatten().tolist() == pytest.approx([1.0, 0.0, half, half, 0.0, 0.0])


def test_every_text_is_embedded_once_and_all_in_one_call() -> None:
    calls: list[list[str]] = []

    def remember(texts: list[str]) -> list[list[float]]:
        calls.append(texts)
        return embed(texts)

    dk.Cosine(remember).pairwise(["east", "north"], ["north", "north-east", "east"])
    assert calls == [["east", "north", "north-east"]]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3).map(tuple),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    data=st.data(),
)
def test_the_mean_of_the_embeddings_gives_the_mean_of_the_cosines(
    rows: list[tuple[float, ...]], data: st.DataObject
) -> None:
    parts = data.draw(st.lists(st.integers(1, 4), min_size=len(rows), max_size=len(rows)))
    names = [str(number) for number in range(len(rows))]
    cosine = dk.Cosine(lambda texts: torch.tensor([rows[int(text)] for text in texts]))
    shares = torch.tensor(parts, dtype=torch.float64) / sum(parts)
    expected = cosine.pairwise(names, names) @ shares
    # Double precision, in another order.
    torch.testing.assert_close(expected, cosine.aggregated(names, names, shares), rtol=1e-12, atol=1e-12)


def test_with_ids_it_reads_ids() -> None:
    out = decoded([["a", "b", "c"]], ids=[[[1, 2], [1], [7]]])
    ids = dk.Cosine(lambda hypotheses: [[len(ids), ids[0]] for ids in hypotheses], ids=True)
    assert dk.mbr(out, ids).hypotheses()[0][0] == [1]


def test_embed_must_be_callable() -> None:
    with pytest.raises(TypeError, match="Cosine: embed must be callable, got 5"):
        dk.Cosine(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [[1.0, 2.0], [[1.0]], "vectors", [[1.0], [math.nan]], [[1.0], [2.0, 3.0]]])
def test_embed_must_return_one_vector_per_text(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="Cosine: embed must return one vector"):
        dk.Cosine(lambda _: given).pairwise(["a"], ["b"])
