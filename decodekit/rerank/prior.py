"""A language model: how likely a hypothesis is on its own, whatever the source."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import torch
from torch import nn

from decodekit.core.prompt import Prompt
from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.engine.decode import as_model
from decodekit.engine.scoring import score
from decodekit.errors import DecodekitError
from decodekit.models.protocols import DescribedModel, Model
from decodekit.rerank._shared.text_inputs import (
    check_batch_size,
    check_is_model,
    read_hypotheses,
    read_reasons,
)


@final
@dataclass(frozen=True)
class Prior:
    r"""A language model: $\log P(y)$ of a hypothesis $y$ without its source.

    Args:
        model: The language model, or the run's own.
        prompt: What it begins with: anything that `decode` takes for a prompt, one for all or one for each.
            None: its BOS.
        texts: True: it is given the hypotheses as text, and may have a vocabulary of its own; the end id is
            its own then, if the hypothesis has ended and it has one. False: it is given their ids.
        batch_size: Hypotheses a forward pass; None: all at once.

    Raises:
        TypeError: If `model` is no model.
        ValueError: If `batch_size` is not an integer of at least 1.
        DecodekitError: In a run, if there are not one or as many `prompt`s as prompts, there is no BOS, or
            texts are wanted and there are none.

    Example:
        >>> model = dk.testing.MarkovModel([[0.9, 0.1], [0.4, 0.6]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> [round(log_prob, 2) for log_prob, in Prior(model, [[1]]).token_log_probs(out)[0]]
        [-0.92, -0.51]

    Source:
        Yee, Dauphin & Auli, 2019, https://arxiv.org/abs/1908.05731.

    Hugging Face:
        None.
    """

    model: Model | nn.Module
    prompt: Any = None
    _: KW_ONLY
    texts: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_is_model("Prior", self.model)
        check_batch_size("Prior", self.batch_size)

    def token_log_probs(self, out: Decoded) -> list[list[list[float]]]:
        """The log-probability of every token in nats, for every prompt and each of its valid hypotheses."""
        model = as_model(self.model)
        vocabulary = model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()
        said = self._said(out, vocabulary)
        rows = [number for number, own in enumerate(said) for _ in own]
        if not rows:
            return [[] for _ in said]
        begins = Prompt.of([[]] if self.prompt is None else self.prompt, vocabulary)
        if len(begins.tokens) not in {1, len(said)}:
            raise DecodekitError(
                f"Prior: there must be one prompt for all or one for each, got {len(begins.tokens)} for "
                f"{len(said)} prompts."
            )
        which = [0 if len(begins.tokens) == 1 else number for number in rows]
        continuations = [[one] for own in said for one in own]
        scored = score(model, begins.take(torch.tensor(which)), continuations, batch_size=self.batch_size)
        found = iter(zip(scored.token_log_probs[:, 0].tolist(), scored.lengths[:, 0].tolist(), strict=True))
        return [[values[:length] for values, length in (next(found) for _ in own)] for own in said]

    def _said(self, out: Decoded, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """What it must say, as ids."""
        if not self.texts:
            return out.hypotheses()
        read = read_hypotheses("Prior", out, ids=False)
        ends = list(vocabulary.end_ids[:1])
        return [
            [
                [*vocabulary.continuation_ids(None, [], text), *(ends if reason == "end" else [])]
                for text, reason in zip(own, finish_code, strict=True)
            ]
            for own, finish_code in zip(read, read_reasons(out), strict=True)
        ]


def check_prior(who: str, prior: object) -> None:
    """Raises unless an argument is a prior, or None."""
    if prior is not None and not isinstance(prior, Prior):
        raise TypeError(f"{who}: prior must be a Prior, got {prior!r:.80}. Use dk.Prior(model).")


def sums(log_probs: list[list[list[float]]], first: int | None = None) -> list[list[float]]:
    """The sum of every hypothesis's first tokens, or of all."""
    return [[math.fsum(values[:first]) for values in row] for row in log_probs]
