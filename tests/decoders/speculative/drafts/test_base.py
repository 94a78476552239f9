"""The contract of drafts, with a custom draft."""

import torch
from torch import Tensor

import decodekit as dk
from decodekit.decoders.speculative.drafts.base import TokenChooser
from decodekit.testing import MarkovModel
from tests.decoders.scripted_draft import Scripted


class Recorder(dk.Draft):
    """Proposes token 1 twice, from confident logits, and records its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[list[int]], list[int]]] = []

    def start(
        self,
        model: dk.Model,  # noqa: ARG002 - the contract's signature
        prompt: dk.Prompt,  # noqa: ARG002
        *,
        rows_per_prompt: int,  # noqa: ARG002
        capacity: int,  # noqa: ARG002
    ) -> dk.DraftSession:
        return RecorderSession(self.calls)


class RecorderSession(dk.DraftSession):
    def __init__(self, calls: list[tuple[list[list[int]], list[int]]]) -> None:
        self.calls = calls

    def propose(
        self,
        emitted: list[list[int]],
        max_tokens: list[int],
        choose: TokenChooser,
    ) -> dk.Proposal:
        self.calls.append((emitted, max_tokens))
        proposed: list[list[int]] = [[] for _ in max_tokens]
        for number in range(2):
            tokens, probs = choose(torch.tensor([[0.0, 9.0]]).repeat(len(max_tokens), 1), proposed)
            assert probs is None
            proposed = [
                [*row, int(token)] if number < allowed else row
                for row, token, allowed in zip(proposed, tokens, max_tokens, strict=True)
            ]
        return dk.Proposal(proposed)


def test_a_draft_gets_the_emitted_tokens_and_the_maximum_number_to_propose() -> None:
    # After 0 comes 1, after 1 comes 1 until the end of the run; a row that begins with 0 gets a 1.
    model = MarkovModel([[0.1, 0.9], [0.4, 0.6]])
    draft = Recorder()
    out = dk.decode(model, [[0], [1]], dk.Speculative(draft, tokens=2), max_new_tokens=5)
    assert out.hypotheses() == [[[1, 1, 1, 1, 1]]] * 2
    assert draft.calls == [([[], []], [2, 2]), ([[1, 1, 1], [1, 1, 1]], [1, 1])]


def test_stateless_processors_apply_to_the_drafts_logits_too() -> None:
    model = MarkovModel([[0.1, 0.9], [0.4, 0.6]])
    decoder = dk.Speculative(Recorder(), tokens=2)
    for ban in (dk.SuppressTokens([1]), dk.Chain(dk.SuppressTokens([1]), dk.SynthID([1, 2], 2))):
        out = dk.decode(model, [[0], [1]], decoder, ban, max_new_tokens=5)
        assert out.hypotheses() == [[[0, 0, 0, 0, 0]]] * 2
        assert isinstance(out.report, dk.Acceptance)
        assert torch.equal(out.report.accepted, out.report.drafted)


class Lift(dk.LogitsProcessor):
    """Has a memory, and raises all scores."""

    def init(self, history: dk.History) -> dk.core.pytrees.Memory:
        return history.position.clone()

    def apply(
        self,
        history: dk.History,  # noqa: ARG002
        scores: Tensor,
        memory: dk.core.pytrees.Memory,
    ) -> tuple[Tensor, dk.core.pytrees.Memory]:
        return scores + 10, memory


class Positive(dk.StatelessProcessor):
    """Bans scores below 0, as all log-probabilities are."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:  # noqa: ARG002
        return scores.masked_fill(scores < 0, -torch.inf)


def test_a_draft_with_all_tokens_banned_falls_back_to_its_own_logits() -> None:
    model = MarkovModel([[0.1, 0.9], [0.4, 0.6]])
    out = dk.decode(
        model, [[0]], dk.Speculative(dk.DraftModel(model)), [Lift(), Positive()], max_new_tokens=5
    )
    assert out.hypotheses() == [[[1, 1, 1, 1, 1]]]
    assert isinstance(out.report, dk.Acceptance)
    assert out.report.accepted.tolist() == out.report.drafted.tolist() == [[4]]


def test_the_rates_are_fractions_and_0_where_nothing_was_proposed() -> None:
    model = MarkovModel([[0.1, 0.9], [0.4, 0.6]])
    out = dk.decode(model, [[0], [1]], dk.Speculative(Scripted([[1, 0], []])), max_new_tokens=4)
    report = out.report
    assert isinstance(report, dk.Acceptance)
    assert report.rate.tolist() == [[0.5], [0.0]]
    assert (3 * report.mean_length).tolist() == [[1.0], [0.0]]
    assert report.rate_at.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert repr(report) == "Acceptance(drafted=2, accepted=1, passes=6)"
