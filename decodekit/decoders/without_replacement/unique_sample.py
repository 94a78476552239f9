"""Sampling without replacement, one sample after the other."""

from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, set_fields
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.finished_hypotheses import FinishedHypothesis, decoded
from decodekit.decoders.independent_row import IndependentRow
from decodekit.decoders.prompt_seeds import prompt_seeds, read_seeds
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.decoders.without_replacement.sampled_mass import SampledMass
from decodekit.decoders.without_replacement.unique_randomizer import UniqueRandomizer
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class UniqueSample(CustomLoop[SampledMass]):
    r"""Draws different samples, one after the other, each from the distribution that remains.

    $P(y_k = y \mid y_1, \dots, y_{k-1}) = P(y) / (1 - \sum_{j<k} P(y_j))$ for a hypothesis $y$ that has not
    been drawn, so the first sample is one of `Sample`. Every prompt has a trie of visited hypotheses, with
    the fraction of each node's probability that is not sampled yet. A draw descends the trie by these
    fractions and asks the model only from the first new node on. In a round every prompt makes `parallel`
    draws: one pass over prompts and known tokens, then a pass for each further token. The draws of a round
    are independent; one that repeats another is rejected, which leaves the distribution as it is.

    Samples differ as token sequences: the same string in other tokens is another sample.

    Where fewer hypotheses exist than asked for, all are returned; the rest is not valid, `"missing"`. A
    hypothesis with every next token banned is a dead end and is set aside as if it had been drawn.
    Processors see each hypothesis token by token, as in the main loop; one with a second model reads it again
    from the prompt in every round. Memory grows with the visited hypotheses: two numbers per next token.

    `Decoded.report` is a `SampledMass`: the unsampled probability at every draw, and estimates.

    Args:
        num_samples: Samples per prompt, at least 1.
        parallel: Draws per prompt and round, at least 1. With `num_samples` a run takes few rounds, of as
            many rows.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then a prompt's result does not depend on the
            batch. The first samples do not depend on `num_samples`.

    Raises:
        ValueError: If `num_samples` or `parallel` is not an integer of at least 1, if both `generator` and
            `seeds` are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds as prompts.
        DecodingError: In a run, if no hypothesis of a prompt can end.

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
        check_fields(self, num_samples=at_least(1), parallel=at_least(1))
        seeds = read_seeds("UniqueSample", self.generator, self.seeds)
        set_fields(self, num_samples=int(self.num_samples), parallel=int(self.parallel), seeds=seeds)

    @override
    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[SampledMass]]:
        prompts = request.prompt
        capacity = prompts.tokens.shape[1] + request.max_new_tokens
        given = None if self.seeds is None else tuple(self.seeds)
        seeds = prompt_seeds("UniqueSample", self.generator, given, len(prompts.tokens)).tolist()
        session, logits = model.start(prompts, rows_per_prompt=self.parallel, capacity=capacity)
        device, limits = logits.device, Limits.of(request, logits.shape[-1])
        history = prompts.to(device).history(capacity, 1)
        prompt_rows = IndependentRow.start(history, processor, limits)
        number, parallel = self.num_samples, self.parallel
        tries = [
            UniqueRandomizer(row, processor, seed, num_samples=number, parallel=parallel)
            for row, seed in zip(prompt_rows, seeds, strict=True)
        ]
        rows, depth = [(trie, draw) for trie in tries for draw in trie.draws], 0
        while True:
            yield
            for row, (trie, draw) in enumerate(rows):
                if not draw.finished and len(draw.tokens) == depth:
                    trie.advance(draw, logits[row : row + 1])
            if all(draw.finished for _, draw in rows):
                rows = [(trie, draw) for trie in tries for draw in trie.draws if not draw.finished]
                if not rows:
                    return _decoded(tries, number, limits, device)
                # All rows start at the depth of the draw that waits first, so that all are at one column.
                depth = min(len(draw.tokens) for _, draw in rows)
                numbers = [tries.index(trie) for trie, _ in rows]
                extended = _extended(prompts, numbers, [draw.tokens[:depth] for _, draw in rows])
                session, logits = model.start(extended, rows_per_prompt=1, capacity=capacity)
            else:
                # Draws that wait deeper emit their known tokens; finished ones emit padding.
                tokens = [limits.pad_id if draw.finished else draw.tokens[depth] for _, draw in rows]
                logits = session.advance(torch.tensor(tokens, device=device), None)
                depth += 1


def _extended(prompt: Prompt, numbers: list[int], tokens: list[list[int]]) -> Prompt:
    """Some of the prompts, each with new tokens, equally many for all."""
    some = prompt.take(torch.tensor(numbers))
    new = torch.tensor(tokens, dtype=torch.long, device=some.tokens.device).view(len(numbers), -1)
    mask = torch.ones_like(new, dtype=torch.bool)
    return replace(some, tokens=torch.cat([some.tokens, new], 1), mask=torch.cat([some.mask, mask], 1))


def _decoded(
    tries: list[UniqueRandomizer], number: int, limits: Limits, device: torch.device
) -> Decoded[SampledMass]:
    """The result, `number` samples per prompt, in the order in which they were drawn."""
    raise_if_all_banned(torch.tensor([not trie.samples for trie in tries]))
    log_masses = torch.full((len(tries), number), -torch.inf, dtype=torch.float64)
    unsampled = torch.zeros_like(log_masses)
    finished: list[list[FinishedHypothesis]] = [[] for _ in tries]
    for prompt, trie in enumerate(tries):
        for rank, (nodes, before) in enumerate(trie.samples):
            log_masses[prompt, rank], unsampled[prompt, rank] = nodes[-1].log_mass, before
            tokens, log_probs = [node.token for node in nodes], [node.log_prob for node in nodes]
            finished[prompt].append(FinishedHypothesis(tokens, log_probs, nodes[-1].finish_code, 0.0))
    report = SampledMass(
        log_probs=log_masses,
        unsampled=unsampled,
        remaining=torch.tensor([trie.unsampled for trie in tries], dtype=torch.float64),
        dead_ends=[trie.dead_ends for trie in tries],
    )
    out = decoded(finished, number, limits, device, rows_per_prompt=number).with_report(report)
    score = out.token_log_probs.double().sum(-1).float().masked_fill(~out.valid, -torch.inf)
    return replace(out, score=score)
