"""Drafts from a model's own predictions."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.prompt import Prompt
from decodekit.decoders.beam.state import common_prefix
from decodekit.decoders.speculative.drafts.base import Draft, DraftSession, Proposal, TokenChooser
from decodekit.models.protocols import Model, ModelWithVocabulary, VerifyingSession
from decodekit.models.rereading import start_verifying


@final
@dataclass(frozen=True)
class DraftModel(Draft):
    """Drafts with another model of the same vocabulary, a smaller and faster one.

    Args:
        model: The draft model. For an encoder-decoder it may be an encoder-decoder too, which reads the same
            source, or a language model, which reads the decoder's tokens only.

    Raises:
        TypeError: If `model` is not a `Model`.

    Example:
        >>> good = dk.testing.MarkovModel([[0.1, 0.9], [0.8, 0.2]])
        >>> small = dk.testing.MarkovModel([[0.4, 0.6], [0.6, 0.4]])
        >>> out = dk.decode(good, [[0]], dk.Speculative(DraftModel(small)), max_new_tokens=6)
        >>> out.tokens, out.report.passes
        (tensor([[[1, 0, 1, 0, 1, 0]]]), tensor([[1]]))

    Source:
        Leviathan, Kalman & Matias, 2023, https://arxiv.org/abs/2211.17192; Chen et al., 2023,
        https://arxiv.org/abs/2302.01318.

    Hugging Face:
        `generate(assistant_model=...)`, for one prompt at a time.
    """

    model: Model

    def __post_init__(self) -> None:
        if isinstance(self.model, type) or not isinstance(self.model, Model):
            raise TypeError(
                f"DraftModel: model must be a decodekit.Model, got {type(self.model).__name__}. "
                "Wrap a transformers model: use dk.HFModel(model, tokenizer)."
            )

    @override
    def start(self, model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> DraftSession:
        return DraftModelSession(self.model, prompt, rows_per_prompt, capacity)


class DraftModelSession(DraftSession):
    """A run of a draft model: it predicts ahead, and takes back the tokens that were refused."""

    def __init__(self, model: Model, prompt: Prompt, rows_per_prompt: int, capacity: int) -> None:
        if isinstance(model, ModelWithVocabulary):
            # A language model reads the decoder's tokens; encoder states are those of another encoder.
            source = prompt.source if model.vocabulary.decoder_start_id is not None else None
            prompt = Prompt.of(Prompt(prompt.tokens, prompt.mask, source), model.vocabulary)
        self._session, self._logits = start_verifying(
            model, prompt, rows_per_prompt=rows_per_prompt, capacity=capacity
        )
        self._read: list[list[int]] = [[] for _ in self._logits]  # proposed tokens that it has read itself

    @override
    def propose(self, emitted: list[list[int]], max_tokens: list[int], choose: TokenChooser) -> Proposal:
        proposed: list[list[int]] = [[] for _ in emitted]
        if not any(max_tokens):
            return Proposal(proposed)
        self._catch_up(emitted)
        logits, probs = self._logits, []
        for number in range(max(max_tokens)):
            tokens, distribution = choose(logits, proposed)
            probs.append(distribution)
            chosen = tokens.tolist()
            for row, maximum in enumerate(max_tokens):
                if number < maximum:
                    proposed[row].append(chosen[row])
            unread = [[chosen[row]] if number + 1 < maximum else [] for row, maximum in enumerate(max_tokens)]
            if any(unread):
                logits = extend(self._session, unread, self._logits.device)[:, 0]
                self._read = [row + new for row, new in zip(self._read, unread, strict=True)]
        drawn = [distribution for distribution in probs if distribution is not None]
        return Proposal(proposed, torch.stack(drawn, 1) if drawn else None)

    def _catch_up(self, emitted: list[list[int]]) -> None:
        """Take back refused tokens, and read emitted ones that were not proposed."""
        if not any(emitted):
            return
        # The logits after the last emitted token are needed, so it is always read anew.
        known = [len(common_prefix([read, new[:-1]])) for read, new in zip(self._read, emitted, strict=True)]
        self._keep(known)
        unread = [row[number:] for row, number in zip(emitted, known, strict=True)]
        if any(unread):
            logits = extend(self._session, unread, self._logits.device)
            last = torch.tensor([max(len(row) - 1, 0) for row in unread], device=logits.device)
            self._logits = logits[torch.arange(len(last), device=logits.device), last]
        self._keep([len(row) for row in unread])
        self._read = [[] for _ in emitted]

    def _keep(self, counts: list[int]) -> None:
        self._session.keep(torch.tensor(counts, device=self._logits.device))


def extend(
    session: VerifyingSession, tokens: list[list[int]], device: torch.device
) -> Float32[Tensor, "rows columns vocab"]:
    """The logits after some more tokens of every row, padded on the right."""
    counts = torch.tensor([len(row) for row in tokens], device=device)
    longest = max(map(len, tokens))
    padded = [[*row, *[0] * (longest - len(row))] for row in tokens]
    return session.extend(torch.tensor(padded, device=device), counts)
