"""Language models, which score hypotheses without their source."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import torch
from torch import nn

from decodekit.core.prompt import Prompt
from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.engine.inputs import as_model
from decodekit.engine.scoring import score
from decodekit.errors import DecodekitError
from decodekit.models.protocols import DescribedModel, Model
from decodekit.rerank._shared.hypotheses import read_hypotheses, valid_values
from decodekit.rerank._shared.model_terms import check_second_model


@final
@dataclass(frozen=True)
class Prior:
    r"""A language model: $\log P(y)$ of a hypothesis $y$ without its source.

    Args:
        model: The language model, or the run's own.
        prompt: Its prompt: anything that `decode` takes, one for all prompts or one per prompt. None: its BOS.
        texts: True: it reads the hypotheses as text, and may have a vocabulary of its own; its own end id
            follows a hypothesis that has ended. False: it reads their ids.
        batch_size: Hypotheses per forward pass; None: all at once.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If `batch_size` is not an integer of at least 1.
        DecodekitError: In a run, if the number of `prompt`s is neither one nor that of the prompts, there is
            no BOS, or texts are required and there are none.

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
        check_second_model("Prior", self.model, self.batch_size)

    def log_probs(self, out: Decoded, first: int | None = None) -> list[list[float]]:
        """Return the log-probability of every prompt's valid hypotheses, or of their first tokens, in nats."""
        return [[math.fsum(values[:first]) for values in row] for row in self.token_log_probs(out)]

    def token_log_probs(self, out: Decoded) -> list[list[list[float]]]:
        """Return the log-probability of every token of every prompt's valid hypotheses, in nats."""
        model = as_model(self.model)
        vocabulary = model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()
        hypotheses = self._ids(out, vocabulary)
        prompt_of = [number for number, row in enumerate(hypotheses) for _ in row]
        if not prompt_of:
            return [[] for _ in hypotheses]
        prompts = Prompt.of([[]] if self.prompt is None else self.prompt, vocabulary)
        if len(prompts.tokens) not in {1, len(hypotheses)}:
            raise DecodekitError(
                f"Prior: there must be one prompt for all or one for each, got {len(prompts.tokens)} for "
                f"{len(hypotheses)} prompts."
            )
        index = torch.tensor([0] * len(prompt_of) if len(prompts.tokens) == 1 else prompt_of)
        continuations = [[ids] for row in hypotheses for ids in row]
        scored = score(model, prompts.take(index), continuations, batch_size=self.batch_size)
        rows = zip(scored.token_log_probs[:, 0].tolist(), scored.lengths[:, 0].tolist(), strict=True)
        values = iter([log_probs[:length] for log_probs, length in rows])
        return [[next(values) for _ in row] for row in hypotheses]

    def _ids(self, out: Decoded, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """Return every prompt's valid hypotheses as ids of the model's vocabulary."""
        if not self.texts:
            return out.hypotheses()
        end = list(vocabulary.end_ids[:1])
        texts, reasons = read_hypotheses("Prior", out, ids=False), valid_values(out, out.finish_reason)
        return [
            [
                [*vocabulary.continuation_ids(None, [], text), *(end if reason == "end" else [])]
                for text, reason in zip(*row, strict=True)
            ]
            for row in zip(texts, reasons, strict=True)
        ]
