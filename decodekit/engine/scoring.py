"""Scoring: the log-probability of given continuations."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeGuard

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from decodekit.core.prompt import Prompt
from decodekit.core.result import Decoded, sum_log_probs
from decodekit.core.validation import checked_options, shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.engine.decode import as_model, vocabulary_of
from decodekit.errors import DecodekitError, DecodingError
from decodekit.models.protocols import Model, ScoringModel


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """The log-probabilities of given continuations.

    Attributes:
        tokens: The continuations; 0 past their end.
        lengths: Number of tokens of each continuation.
        valid: False where a prompt has fewer continuations than another.
        token_log_probs: The model's log-probability of each token, in nats; 0 past the end.
    """

    tokens: Int64[Tensor, "batch hyps new"]
    lengths: Int64[Tensor, "batch hyps"]
    valid: Bool[Tensor, "batch hyps"]
    token_log_probs: Float32[Tensor, "batch hyps new"]

    @property
    def log_prob(self) -> Float32[Tensor, "batch hyps"]:
        """The log-probability of each whole continuation, in nats; minus infinity if not valid."""
        return sum_log_probs(self.token_log_probs).masked_fill(~self.valid, -torch.inf)

    def __repr__(self) -> str:
        return f"Scored(log_prob={self.log_prob.tolist()}, lengths={self.lengths.tolist()})"


@checked_options
@torch.no_grad()
def score(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - anything that Prompt.of reads
    continuations: Any,  # noqa: ANN401 - see Args
    *,
    batch_size: int | None = None,
) -> Scored:
    r"""The model's log-probabilities of given continuations, teacher-forced.

    $\log P(y \mid x) = \sum_t \log P(y_t \mid x, y_{<t})$, in one forward pass per batch, summed in double
    precision.

    Args:
        model: The model.
        prompts: The prompts, in any form that `decode` takes.
        continuations: For every prompt a string, a list of ids, or a list of several of either. For a single
            prompt that is not in a list, one or several continuations. A tensor `[batch, new]` or
            `[batch, hyps, new]`, in which every id counts, or the result of `decode`.
        batch_size: Continuations per forward pass; by default all at once.

    Returns:
        Log-probabilities per token and per continuation, `[batch, hyps]`.

    Raises:
        DecodekitError: If the number of continuations differs from the number of prompts, an id is outside
            the vocabulary, or a text is longer than the model's positions.

    Example:
        >>> scored = dk.score(dk.load(), "Once upon a", [[" time", " castle"]])
        >>> bool(scored.log_prob[0, 0] > scored.log_prob[0, 1])
        True

    Hugging Face:
        `model(input_ids).logits.log_softmax(-1)`, shifted and gathered by hand.
    """
    model = as_model(model)
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise DecodekitError(f"score: batch_size must be an integer of at least 1, got {batch_size!r}.")
    vocabulary = vocabulary_of(model)
    prompt = Prompt.of(prompts, vocabulary)
    given = _read(continuations, prompt, prompts, vocabulary)
    hyps = max(len(several) for several in given)
    rows = [ids for several in given for ids in [*several, *([[]] * (hyps - len(several)))]]
    lengths = torch.tensor([len(ids) for ids in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    prompt_of_row = torch.arange(len(given)).repeat_interleave(hyps)
    size = batch_size or len(rows)
    parts = [slice(first, first + size) for first in range(0, len(rows), size)]
    log_probs = [
        _score_rows(model, prompt.take(prompt_of_row[part]), tokens[part], lengths[part]) for part in parts
    ]
    shape = (len(given), hyps)
    valid = [[number < len(several) for number in range(hyps)] for several in given]
    return Scored(
        tokens=tokens.view(*shape, tokens.shape[1]),
        lengths=lengths.view(shape),
        valid=torch.tensor(valid),
        token_log_probs=torch.cat(log_probs).cpu().view(*shape, tokens.shape[1]),
    )


def _score_rows(
    model: Model, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: Int64[Tensor, " rows"]
) -> Float32[Tensor, "rows new"]:
    if isinstance(model, ScoringModel):
        log_probs = model.score_tokens(prompt, tokens, lengths)
    else:
        log_probs = _score_step_by_step(model, prompt, tokens, lengths)
    if log_probs.isnan().any():
        raise DecodingError(
            "score: some logits of the model were NaN. Half precision overflows; try float32."
        )
    return log_probs


def _score_step_by_step(
    model: Model, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: Int64[Tensor, " rows"]
) -> Float32[Tensor, "rows new"]:
    """The log-probabilities by a model that reads token by token."""
    new = tokens.shape[1]
    session, logits = model.start(prompt, rows_per_prompt=1, capacity=prompt.tokens.shape[1] + new)
    tokens, lengths = tokens.to(logits.device), lengths.to(logits.device)
    if new and int(tokens.max()) >= logits.shape[-1]:
        raise DecodekitError(
            f"score: ids must be below the {logits.shape[-1]} logits of the model, got {int(tokens.max())}."
        )
    columns = []
    for column in range(new):
        given = tokens[:, column]
        log_probs = logits.log_softmax(-1).gather(1, given[:, None])[:, 0]
        columns.append(log_probs.masked_fill(column >= lengths, 0.0))
        if column + 1 < new:
            logits = session.advance(given, None)
    return torch.stack(columns, 1) if columns else tokens.float()


def _read(
    continuations: Any,  # noqa: ANN401
    prompt: Prompt,
    prompts: Any,  # noqa: ANN401
    vocabulary: Vocabulary,
) -> list[list[list[int]]]:
    """Ids by prompt and continuation."""
    ids, batch = prompt.ids(), len(prompt.tokens)
    if isinstance(continuations, Decoded):
        continuations = continuations.hypotheses()
    elif isinstance(continuations, Tensor):
        continuations = continuations.tolist()
    elif isinstance(continuations, str):
        continuations = [continuations]
    several = isinstance(continuations, Sequence)
    is_bare = isinstance(prompts, str) or (isinstance(prompts, Sequence) and _is_ids(prompts))
    of_one = batch == 1 and several and len(continuations) > 0
    if of_one and (_is_ids(continuations) or (is_bare and len(continuations) > 1)):
        continuations = [continuations]  # all of the one prompt
    if not several or len(continuations) != batch:
        raise DecodekitError(
            f"score: there must be one continuation, or one list of them, per prompt, got "
            f"{len(continuations) if several else continuations!r} for {batch} prompts."
        )
    rows = [prompts] if isinstance(prompts, str) else prompts
    # The decoder does not continue the text of the encoder.
    is_rows = isinstance(rows, Sequence) and len(rows) == batch and prompt.source is None
    texts = [row if isinstance(row, str) else None for row in rows] if is_rows else [None] * batch
    return [
        [_ids(one, text, prompt_ids, vocabulary) for one in _several(given)]
        for given, text, prompt_ids in zip(continuations, texts, ids, strict=True)
    ]


def _several(given: Any) -> list[Any]:  # noqa: ANN401
    """The continuations of one prompt as a list: a string or a list of ids is one."""
    if isinstance(given, Tensor):
        given = given.tolist()
    if isinstance(given, str) or not isinstance(given, Sequence) or _is_ids(given):
        return [given]
    return list(given)


def _ids(
    continuation: Any,  # noqa: ANN401
    prompt_text: str | None,
    prompt_ids: list[int],
    vocabulary: Vocabulary,
) -> list[int]:
    if isinstance(continuation, str):
        continuation = vocabulary.continuation_ids(prompt_text, prompt_ids, continuation)
    ids = continuation.tolist() if isinstance(continuation, Tensor) else continuation
    if not isinstance(ids, Sequence):
        ids = (None,)  # refused below, as any other object is
    for token in ids:
        if not _is_id(token) or token < 0 or token >= (vocabulary.size or token + 1):
            raise DecodekitError(
                f"score: continuations must be strings or ids in [0, {vocabulary.size or 'vocabulary'}), got "
                f"{shown(continuation)}."
            )
    return list(map(int, ids))


def _is_ids(given: Sequence[object]) -> bool:
    return all(map(_is_id, given))


def _is_id(item: object) -> TypeGuard[int]:
    """True for an integer of any kind, such as that of numpy."""
    return isinstance(item, Integral) and not isinstance(item, bool)
