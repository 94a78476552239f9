"""Ensembles of models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import NON_NEGATIVE, set_fields
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, weigh
from decodekit.processors._shared.parameters import (
    PerPrompt,
    by_prompt,
    for_rows,
    map_per_prompt,
    per_prompt,
)
from decodekit.processors._shared.second_model import SecondModelProcessor, check_model
from decodekit.processors.base import PromptValues, Scores

_WEIGHT = NON_NEGATIVE._replace(words="finite numbers of at least 0")


@final
@dataclass(frozen=True)
class Ensemble(SecondModelProcessor):
    r"""Averages the distributions of the run's model and other models.

    $\log \sum_i w_i P_i(v)$, or with `average="log_prob"` $\sum_i w_i \log P_i(v)$, the logarithm of the
    weighted geometric mean, in which every model has a veto. If no token was banned before, `average="prob"`
    gives log-probabilities. The scores of `average="log_prob"` are not normalized. Tokens that were banned,
    or are impossible for the run's own model, stay banned. All caches follow their beams. Not capturable: the
    host runs the other models' sessions.

    Args:
        models: The other models, one or several, with the same vocabulary; they read the same prompts.
        weights: $w_i$, first for the run's own model, then for each other model, at least 0 and not all 0;
            divided by their sum. Each is one number, or one per prompt. None: all equal.
        average: `"prob"` averages probabilities, `"log_prob"` log-probabilities.

    Raises:
        ValueError: If there are no models, the number of weights is not one more than the number of `models`,
            a weight is infinite, NaN or below 0, all weights of a prompt are 0, or `average` is unknown.
        TypeError: If one of the `models` is not a `Model`.
        DecodekitError: In a run, if the models have different vocabularies, or a weight has neither one
            number nor one per prompt.

    Example:
        >>> first, second = (dk.testing.MarkovModel([row] * 2) for row in ([0.6, 0.4], [0.1, 0.9]))
        >>> dk.decode(first, [[0]], dk.Greedy(), Ensemble(second), max_new_tokens=2).tokens
        tensor([[[1, 1]]])

    Source:
        Hinton, 1999, https://doi.org/10.1049/cp:19991075, compares mixtures and products of experts.

    Hugging Face:
        None.
    """

    models: Model | Sequence[Model]
    weights: Sequence[PerPrompt] | None = None
    average: Literal["prob", "log_prob"] = "prob"

    def __post_init__(self) -> None:
        models = tuple(self.models) if isinstance(self.models, Sequence) else (self.models,)
        for model in models:
            check_model("Ensemble", "every model", model)
        if not models:
            raise ValueError("Ensemble: there must be at least one other model, got none.")
        if self.average not in {"prob", "log_prob"}:
            raise ValueError(f"Ensemble: average must be 'prob' or 'log_prob', got {self.average!r}.")
        weights = [1] * (len(models) + 1) if self.weights is None else list(self.weights)
        if len(weights) != len(models) + 1:
            raise ValueError(
                f"Ensemble: there must be a weight for the run's own model and one for each other, "
                f"{len(models) + 1} together, got {len(weights)}."
            )
        set_fields(self, models=models, weights=_normalize(weights))

    @override
    def second_models(self, history: History) -> list[tuple[Model, None]]:
        batch = history.batch
        for weight in self._weights:
            if isinstance(weight, PromptValues) and len(weight) != batch:
                raise DecodekitError(
                    f"Ensemble: a weight must be one number, or one for each prompt, got {len(weight)} for "
                    f"{batch} prompts."
                )
        models: tuple[Model, ...] = self.models  # type: ignore[assignment]  # set by __post_init__
        return [(model, None) for model in models]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        log_probs = [of_model.log_softmax(-1) for of_model in (scores, *logits)]
        if self.average == "prob":
            weights = [for_rows(map_per_prompt(_log, weight), history, scores) for weight in self._weights]
            terms = [weight + model for weight, model in zip(weights, log_probs, strict=True)]
            mean = torch.stack(terms).logsumexp(0)
        else:
            weights = [for_rows(weight, history, scores) for weight in self._weights]
            mean = torch.stack(list(map(weigh, weights, log_probs))).sum(0)
        return keep_banned(mean, scores)

    @property
    def _weights(self) -> tuple[PerPrompt, ...]:
        return self.weights  # type: ignore[return-value]  # set by __post_init__


def _normalize(weights: Sequence[PerPrompt]) -> tuple[PerPrompt, ...]:
    """Divide every weight by the sum of all, prompt by prompt."""
    checked = [per_prompt("Ensemble", "weights", weight, _WEIGHT) for weight in weights]
    batches = {len(weight) for weight in checked if isinstance(weight, PromptValues)}
    if len(batches) > 1:
        raise ValueError(f"Ensemble: weights must be for equally many prompts, got {sorted(batches)}.")
    rows = by_prompt(*checked)
    if min(map(sum, rows)) == 0:
        raise ValueError("Ensemble: some weight must be above 0, got only zeros.")
    normalized = [tuple(weight / sum(row) for weight in row) for row in rows]
    return tuple(map(PromptValues, zip(*normalized, strict=True))) if batches else normalized[0]


def _log(weight: float) -> float:
    return math.log(weight) if weight else -math.inf
