"""A model that drafts: it reads along, goes on by itself, and takes back what was refused."""

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.speculative.drafts.base import Choose, DraftSession, Proposal
from decodekit.models.protocols import Model, ModelWithVocabulary
from decodekit.models.rereading import start_verifying


class ModelDraft(DraftSession):
    """A run of a model that drafts.

    Args:
        model: The model.
        prompt: The run's prompts.
        rows_per_prompt: Samples of each.
        capacity: Columns that prompts and continuations take at most.
    """

    def __init__(self, model: Model, prompt: Prompt, rows_per_prompt: int, capacity: int) -> None:
        vocabulary = model.vocabulary if isinstance(model, ModelWithVocabulary) else Vocabulary()
        if isinstance(model, ModelWithVocabulary):
            # A language model drafts from what the decoder says; states are those of another encoder.
            source = prompt.source if vocabulary.decoder_start_id is not None else None
            prompt = Prompt.of(Prompt(prompt.tokens, prompt.mask, source), vocabulary)
        self._session, self._logits = start_verifying(
            model, prompt, rows_per_prompt=rows_per_prompt, capacity=capacity
        )
        self._guessed: list[list[int]] = [[] for _ in self._logits]  # of its own proposals, what it has read

    def propose(self, said: list[list[int]], most: list[int], choose: Choose) -> Proposal:
        """Goes on by itself, token after token."""
        drafted: list[list[int]] = [[] for _ in said]
        if not any(most):
            return Proposal(drafted)
        self._catch_up(said)
        logits, probs = self._logits, []
        for number in range(max(most)):
            tokens, distribution = choose(logits, drafted)
            probs.append(distribution)
            chosen = tokens.tolist()
            for row, allowed in enumerate(most):
                if number < allowed:
                    drafted[row].append(chosen[row])
            reads = [[chosen[row]] if number + 1 < allowed else [] for row, allowed in enumerate(most)]
            if any(reads):
                logits = self._extend(reads)[:, 0]
                self._guessed = [row + new for row, new in zip(self._guessed, reads, strict=True)]
        drawn = [one for one in probs if one is not None]
        return Proposal(drafted, torch.stack(drawn, 1) if drawn else None)

    def _catch_up(self, said: list[list[int]]) -> None:
        """Reads what was said, except what it had guessed and read."""
        if not any(said):
            return
        known = [_common(*pair) for pair in zip(self._guessed, said, strict=True)]
        self._keep(known)
        unread = [row[number:] for row, number in zip(said, known, strict=True)]
        if any(unread):
            logits = self._extend(unread)
            last = torch.tensor([max(len(row) - 1, 0) for row in unread], device=logits.device)
            self._logits = logits[torch.arange(len(last), device=logits.device), last]
        self._keep([len(row) for row in unread])
        self._guessed = [[] for _ in said]

    def _extend(self, tokens: list[list[int]]) -> Float32[Tensor, "rows columns vocab"]:
        counts = torch.tensor([len(row) for row in tokens], device=self._logits.device)
        padded = [[*row, *[0] * (int(counts.max()) - len(row))] for row in tokens]
        return self._session.extend(torch.tensor(padded, device=counts.device), counts)

    def _keep(self, counts: list[int]) -> None:
        self._session.keep(torch.tensor(counts, device=self._logits.device))


def _common(guessed: list[int], said: list[int]) -> int:
    """How many tokens were guessed; never the last of those said, whose logits are wanted."""
    number = 0
    while number < min(len(guessed), len(said) - 1) and guessed[number] == said[number]:
        number += 1
    return number
