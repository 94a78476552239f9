"""Models that are broken in one way each, and the law that says so."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, check_model
from decodekit.testing.toy_models import ToySession

pytestmark = pytest.mark.usefixtures("first_failure")

VOCAB = 9


@dataclass
class Altered:
    """A right model whose sessions are handed to `session`, which breaks them."""

    session: Any
    model: HashModel = HashModel(VOCAB)

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        session, logits = self.model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        return self.session(session), logits


@dataclass
class ForgetsTheReorder:
    """Broken: goes on from the row's own cache, and ignores source rows."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        del source_rows
        return self.session.advance(tokens, None)


@dataclass
class OneTokenLate:
    """Broken: reads every token one step late."""

    session: ToySession
    waiting: Tensor | None = None

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        late = tokens if self.waiting is None else self.waiting
        self.waiting = tokens
        return self.session.advance(late, source_rows)


@dataclass
class ReordersAfterwards:
    """Broken: the tokens go to the old rows, and only then the rows change places."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        logits = self.session.advance(tokens, None)
        self.session.state = self.session.state if source_rows is None else self.session.state[source_rows]
        return logits if source_rows is None else logits[source_rows].contiguous()


@dataclass
class PutsNewPromptsFirst:
    """Broken: merged prompts come before its own."""

    session: ToySession
    can_evict = True

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        return self.session.advance(tokens, source_rows)

    def keep_prompts(self, prompts: Tensor) -> None:
        self.session.keep_prompts(prompts)

    def can_merge(self) -> bool:
        return True

    def merge(self, other: "PutsNewPromptsFirst") -> None:
        other.session.merge(self.session)
        self.session = other.session


@dataclass
class ForgetsTheTokensOfRowsThatStay:
    """Broken: ignores tokens where no row changes places."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        return self.session.logits() if source_rows is None else self.session.advance(tokens, source_rows)


@dataclass
class DoublePrecision:
    """Broken: the logits are not float32."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        return self.session.advance(tokens, source_rows).double()


@dataclass
class Strided:
    """Broken: the logits are a view of something wider."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        logits = self.session.advance(tokens, source_rows)
        return torch.stack([logits, logits], -1)[..., 0]


class ReadsThePadding(HashModel):
    """Broken: reads padding as tokens."""

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[ToySession, Tensor]:
        unmasked = replace(prompt, mask=torch.ones_like(prompt.mask))
        return super().start(unmasked, rows_per_prompt=rows_per_prompt, capacity=capacity)


class MixesUpItsRows(HashModel):
    """Broken: widens the batch as a whole, not prompt by prompt."""

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[ToySession, Tensor]:
        batch = len(prompt.tokens)
        session, logits = super().start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        order = torch.arange(batch * rows_per_prompt).view(batch, -1).T.flatten()
        session.state = session.state[order]
        return session, logits[order].contiguous()


def test_a_model_that_keeps_the_contract_passes() -> None:
    check_model(Altered(lambda session: session), vocab=VOCAB)


@pytest.mark.parametrize(
    ("session", "events"),
    [
        (ForgetsTheReorder, r"start, .*advance with source_rows \[[\d, ]+\]"),
        (OneTokenLate, r"start, advance with source_rows \[[\d, ]+\], advance with source_rows None"),
        (ReordersAfterwards, r"start, .*advance with source_rows \[[\d, ]+\]"),
        (PutsNewPromptsFirst, "start, .*, merge, advance with source_rows None.*"),
        (ForgetsTheTokensOfRowsThatStay, "start, .*, advance with source_rows None"),
    ],
)
def test_a_model_whose_cache_goes_wrong_is_caught(session: Any, events: str) -> None:  # noqa: ANN401
    law = rf"after {events}, row \d must have the logits of a fresh start on its tokens: tokens \["
    with pytest.raises(AssertionError, match=law):
        check_model(Altered(session), vocab=VOCAB)


@pytest.mark.parametrize("session", [DoublePrecision, Strided])
def test_a_model_whose_logits_have_the_wrong_form_is_caught(session: Any) -> None:  # noqa: ANN401
    with pytest.raises(AssertionError, match="logits must be float32"):
        check_model(Altered(session), vocab=VOCAB)


@pytest.mark.parametrize("broken", [ReadsThePadding(VOCAB), MixesUpItsRows(VOCAB)])
def test_a_model_whose_first_logits_are_wrong_is_caught(broken: dk.Model) -> None:
    with pytest.raises(AssertionError, match=r"after start, row \d must have the logits of a fresh start"):
        check_model(broken, vocab=VOCAB)
