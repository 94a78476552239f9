import io

import pytest
import torch
from rich.console import Console

import decodekit as dk
from decodekit.core.trace import RecordedStep, Trace
from decodekit.inspect.table import trace_table


def fabricated_trace() -> Trace:
    """Two rows, of which the first ends at once; tokens read as their letters, 0 ends the text."""

    class Letters:
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:  # noqa: ARG002
            return ["\0\a[王".index(letter) for letter in text]

        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            return "".join("\0\a[王"[token] for token in token_ids if token or not skip_special_tokens)

    likely = torch.tensor([[3, 2, 1, 0, 0], [2, 3, 0, 1, 1]])
    log_probs = torch.tensor([[1.0, 0.5, 0.05, 0.0, 0.0]] * 2).log()
    step = RecordedStep(likely, log_probs, log_probs, torch.tensor([0, 3]), None)
    return Trace(
        dk.Prompt.from_ids([[3] * 30]),
        2,
        dk.Vocabulary(size=4, end_ids=(0,), tokenizer=Letters()),
        (0,),
        [step, step],
    )


@pytest.mark.parametrize("width", [80, 100, 240])
def test_the_trace_table_shortens_what_does_not_fit(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(trace_table(fabricated_trace(), console.width))
    assert isinstance(console.file, io.StringIO)
    header, first, _, last = console.file.getvalue().splitlines()
    assert header.split()[:3] == ["Step", "Row", "Input"]
    assert "[" in first  # literally
    assert r"\x07" in first
    assert "<end>" in first
    assert "100.0%" in first
    assert ("…" in first) == (width < 240)
    assert last.split()[:2] == ["1", "1"]
