"""Sampling without replacement, one sample after the other."""

from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.prompt_seeds import prompt_seeds, read_seeds
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.decoders.speculative.speculative_row import SpeculativeRow
from decodekit.decoders.without_replacement.residual_walk import ResidualTrie
from decodekit.decoders.without_replacement.sampled_mass import SampledMass
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class UniqueSample(CustomLoop[SampledMass]):
    r"""Draws different samples, one after the other, each from what is left of the distribution.

    $P(y_k = y \mid y_1, \dots, y_{k-1}) = P(y) / (1 - \sum_{j<k} P(y_j))$ for a text y that has not been
    drawn, so the first sample is one of `Sample`. Every prompt has a trie of the texts it has visited, with
    the share of each that has not been sampled. A draw goes down the trie by these shares, and asks the model
    only from the first text on that is new: a round, in which every prompt draws, is one pass over prompts
    and what is known, then a pass for each further token. Several draws of a round do not know of each other,
    and one that repeats another is void, which leaves the distribution as it is.

    Texts are token sequences: the same words in other tokens are another text.

    Where there are fewer texts than asked for, fewer come back: the rest is not valid, `"missing"`. A text
    that cannot end, because the processors ban every next token, is set aside as if it had been drawn.
    Processors see each text token by token, as in the main loop; one with a second model reads it again from
    the prompt on in every round. Memory grows with visited texts: two numbers a token that may follow.

    `Decoded.report` is a `SampledMass`: what was left at every draw, and averages over all texts.

    Args:
        num_samples: Samples of each prompt, at least 1.
        parallel: Draws of each prompt in a round, at least 1. With as many as samples a run takes few rounds,
            of as many rows.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer a prompt, instead of a generator: then a prompt's result does not depend on the
            batch. The first samples do not depend on how many there are.

    Raises:
        ValueError: If `num_samples` or `parallel` is not an integer of at least 1, if both `generator` and
            `seeds` are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds as prompts.
        DecodingError: In a run, if no text of a prompt can end.

    Example:
        >>> coin = dk.testing.MarkovModel([[0.25, 0.75], [0.25, 0.75]])
        >>> out = dk.decode(coin, [[0]], UniqueSample(5, seeds=[4]), max_new_tokens=2)
        >>> out.hypotheses()[0], out.finish_reason[0][3:]
        ([[1, 0], [0, 1], [1, 1], [0, 0]], ['length', 'missing'])

    Source:
        Shi, Bieber & Sutton, 2020, https://arxiv.org/abs/2002.09067: UniqueRandomizer.

    Hugging Face:
        None.
    """

    num_samples: int = 1
    _: KW_ONLY
    parallel: int = 1
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "parallel"):
            number = getattr(self, name)
            if not is_count(number, 1):
                raise ValueError(f"UniqueSample: {name} must be an integer of at least 1, got {number!r}.")
            object.__setattr__(self, name, int(number))  # the way to set frozen fields
        seeds = read_seeds("UniqueSample", self.generator, self.seeds)
        object.__setattr__(self, "seeds", seeds)

    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[SampledMass]]:
        """Rounds of draws, each from the first text on that is new."""
        batch, length = request.prompt.tokens.shape
        capacity = length + request.max_new_tokens
        given = None if self.seeds is None else tuple(self.seeds)
        seeds = prompt_seeds("UniqueSample", self.generator, given, batch).tolist()
        session, logits = model.start(request.prompt, rows_per_prompt=self.parallel, capacity=capacity)
        limits = Limits.of(request, logits.shape[-1])
        lines = SpeculativeRow.start(request.prompt.to(logits.device).history(capacity, 1), processor, limits)
        every = [
            ResidualTrie(line, processor, seed, wanted=self.num_samples, parallel=self.parallel)
            for line, seed in zip(lines, seeds, strict=True)
        ]
        rows, depth = [(texts, walk) for texts in every for walk in texts.walks], 0
        while True:
            yield
            for row, (texts, walk) in enumerate(rows):
                if not walk.has_ended and len(walk.tokens) == depth:
                    texts.read(walk, logits[row : row + 1])
            if all(walk.has_ended for _, walk in rows):
                rows = [(texts, walk) for texts in every for walk in texts.walks if not walk.has_ended]
                if not rows:
                    return _decoded(every, self.num_samples, limits, logits.device)
                # All begin where the first of them waits, so that all are at one column.
                depth = min(len(walk.tokens) for _, walk in rows)
                prompts = [every.index(texts) for texts, _ in rows]
                prompt = _grown(request.prompt, prompts, [walk.tokens[:depth] for _, walk in rows])
                session, logits = model.start(prompt, rows_per_prompt=1, capacity=capacity)
            else:
                # Those that wait further down say what is known; those that have ended, anything.
                said = [limits.pad_id if walk.has_ended else walk.tokens[depth] for _, walk in rows]
                logits = session.advance(torch.tensor(said, device=logits.device), None)
                depth += 1


def _grown(prompt: Prompt, numbers: list[int], tokens: list[list[int]]) -> Prompt:
    """Some of the prompts with some new tokens each, as many for all."""
    some = prompt.take(torch.tensor(numbers))
    new = torch.tensor(tokens, dtype=torch.long, device=some.tokens.device).view(len(numbers), -1)
    mask = torch.ones_like(new, dtype=torch.bool)
    return replace(some, tokens=torch.cat([some.tokens, new], 1), mask=torch.cat([some.mask, mask], 1))


def _decoded(
    every: list[ResidualTrie], number: int, limits: Limits, device: torch.device
) -> Decoded[SampledMass]:
    """All samples as the result, `number` of them a prompt, in the order in which they were drawn."""
    raise_if_all_banned(torch.tensor([not texts.samples for texts in every]))
    batch = len(every)
    new = max(len(drawn.nodes) for texts in every for drawn in texts.samples)
    tokens = torch.full((batch, number, new), limits.pad_id)
    parents = torch.full((batch, number, new), -1)
    token_log_probs = torch.zeros(batch, number, new)
    lengths, finish_code = (torch.zeros(batch, number, dtype=torch.long) for _ in range(2))
    masses = torch.full((batch, number), -torch.inf, dtype=torch.float64)
    left = torch.zeros_like(masses)
    for prompt, texts in enumerate(every):
        for hyp, (nodes, before) in enumerate(texts.samples):
            length = len(nodes)
            tokens[prompt, hyp, :length] = torch.tensor([node.token for node in nodes])
            token_log_probs[prompt, hyp, :length] = torch.tensor([node.log_prob for node in nodes])
            parents[prompt, hyp, :length] = prompt * number + hyp
            lengths[prompt, hyp], finish_code[prompt, hyp] = length, nodes[-1].finish_code
            masses[prompt, hyp], left[prompt, hyp] = nodes[-1].log_mass, before
    valid = lengths > 0
    reasons = [
        [reason if is_valid else "missing" for reason, is_valid in zip(*row, strict=True)]
        for row in zip(limits.reasons(finish_code), valid.tolist(), strict=True)
    ]
    score = token_log_probs.double().sum(-1).float().masked_fill(~valid, -torch.inf)
    return Decoded(
        tokens=tokens.to(device),
        lengths=lengths.to(device),
        finish_reason=reasons,
        valid=valid.to(device),
        token_log_probs=token_log_probs.to(device),
        score=score.to(device),
        parents=parents.to(device),
        pad_id=limits.pad_id,
        finish_code=finish_code.to(device),
        report=SampledMass(
            log_probs=masses,
            left=left,
            remaining=torch.tensor([texts.left for texts in every], dtype=torch.float64),
            dead_ends=[texts.dead_ends for texts in every],
        ),
    )
