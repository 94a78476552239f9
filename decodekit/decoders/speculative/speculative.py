"""Speculative decoding."""

from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import takewhile
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.limits import Limits
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import FLAG, at_least, check_fields, shown
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.independent_row import IndependentRow, decoded
from decodekit.decoders.prompt_seeds import check_generator_device, prompt_seeds, read_seeds
from decodekit.decoders.speculative.acceptance import Acceptance, count_round, summarize
from decodekit.decoders.speculative.drafts.base import Draft, Proposal
from decodekit.decoders.speculative.drafts.draft_model import extend
from decodekit.decoders.speculative.draws import Draws, Purpose
from decodekit.decoders.speculative.propose import DraftSampler, stateless_processors
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model, VerifyingSession
from decodekit.models.rereading import start_verifying
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class Speculative(CustomLoop[Acceptance]):
    r"""Decodes several tokens per pass: a cheap draft proposes them, the model verifies them. Lossless.

    Greedy: a proposed token is accepted if it is the argmax; the first one that is not is replaced by the
    argmax. The result is exactly that of `Greedy`. Sampling: a token $x$ drawn from the draft's distribution
    $q$ is accepted with probability $\min(1, p(x) / q(x))$; else a token is drawn from $\max(0, p - q)$,
    normalized, in its place. Every token then follows $p$, for any $q$. Each pass emits one more token
    than it accepts, so between 1 and `tokens` + 1.

    $p$ is the distribution after the processors. They see every token once, in order, on rows of different
    lengths. Memories, second models and parameters per prompt belong to the row, and stopping criteria are
    checked after every token. The draft's logits go through the stateless processors too, which makes more of
    its tokens acceptable and changes nothing else.

    `Decoded.report` is an `Acceptance`.

    Args:
        draft: The source of proposals: `DraftModel`, `PromptLookup`, `EarlyExit`, or your own `Draft`.
        tokens: Maximum number of proposed tokens per pass, at least 1. Usual values: 3-10; the better the
            draft, the more.
        sample: True draws tokens, as `Sample` does; False takes the argmax, as `Greedy` does.
        num_samples: Samples per prompt, at least 1.
        generator: The stream of all draws; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then a prompt's result does not depend on the
            batch.

    Raises:
        TypeError: If `draft` is not a `Draft`.
        ValueError: If `tokens` or `num_samples` is not an integer of at least 1, `sample` is not True or
            False, both `generator` and `seeds` are given, or one of the last three is given with
            `sample=False`.
        DecodekitError: In a run, if there are not as many seeds as prompts, if the generator is on another
            device than the model, or if the draft proposes more than it was asked for.

    Example:
        >>> model, prompts = dk.load(), ["Once upon a time there was", "she was as beautiful as the"]
        >>> out = dk.decode(model, prompts, Speculative(dk.PromptLookup()), max_new_tokens=20)
        >>> out.texts == dk.decode(model, prompts, dk.Greedy(), max_new_tokens=20).texts
        True

    Source:
        Leviathan, Kalman & Matias, 2023, https://arxiv.org/abs/2211.17192, algorithm 1; Chen et al., 2023,
        https://arxiv.org/abs/2302.01318.

    Hugging Face:
        Assisted generation, such as `generate(assistant_model=...)`, for one prompt at a time. Its greedy
        tokens are the same; its samples have the same distribution, from other draws.
    """

    draft: Draft
    _: KW_ONLY
    tokens: int = 5
    sample: bool = False
    num_samples: int = 1
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.draft, Draft):
            raise TypeError(
                f"Speculative: draft must be a Draft, got {shown(self.draft)}. Use dk.DraftModel(model), "
                "dk.PromptLookup() or dk.EarlyExit(layer)."
            )
        check_fields(self, tokens=at_least(1), num_samples=at_least(1), sample=FLAG)
        read_seeds(self)
        if not self.sample and (self.num_samples, self.generator, self.seeds) != (1, None, None):
            raise ValueError(
                "Speculative: num_samples, generator and seeds must be left out where nothing is drawn. Pass "
                "sample=True to draw."
            )

    @override
    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Acceptance]]:
        prompt, num_samples = request.prompt, self.num_samples
        capacity = prompt.tokens.shape[1] + request.max_new_tokens
        session, logits = start_verifying(model, prompt, rows_per_prompt=num_samples, capacity=capacity)
        device, limits = logits.device, Limits.of(request, logits.shape[-1])
        draws = self._draws(len(prompt.tokens), device)
        rows = IndependentRow.start(prompt.to(device).history(capacity, num_samples), processor, limits)
        draft = self.draft.start(model, prompt, rows_per_prompt=num_samples, capacity=capacity)
        processors = stateless_processors(processor, greedy=not self.sample)
        verifier, rounds = ProposalVerifier(processor, draws), list[list[list[int]]]()
        emitted: list[list[int]] = [[] for _ in rows]  # by each row since the last proposal
        while True:
            max_tokens = [0 if row.finished else min(self.tokens, row.remaining - 1) for row in rows]
            proposal = draft.propose(emitted, max_tokens, DraftSampler(processors, draws, rows))
            proposed, draft_probs = self._checked(proposal, max_tokens, limits.vocab)
            # The model has not read each row's last token, except after the prompt, and its proposal.
            unread = [[*new[-1:], *tokens] for new, tokens in zip(emitted, proposed, strict=True)]
            targets = target_logits(session, unread, logits, after_prompt=not rounds)
            lengths, accepted = [row.length for row in rows], [0] * len(rows)
            for number, row in enumerate(rows):
                if not row.finished:
                    probs = None if draft_probs is None else draft_probs[number]
                    rows[number], accepted[number] = verifier.verify(
                        row, number, targets[number], proposed[number], probs
                    )
            kept = [len(new[-1:]) + number for new, number in zip(emitted, accepted, strict=True)]
            emitted = [row.tokens_from(length) for row, length in zip(rows, lengths, strict=True)]
            rounds.append(count_round(proposed, accepted, emitted, [bool(tokens) for tokens in unread]))
            emitted = [[] if row.finished else new for row, new in zip(rows, emitted, strict=True)]
            yield
            if all(row.finished for row in rows):
                report = summarize(rounds, self.tokens, num_samples)
                return decoded(rows, num_samples).with_report(report)
            session.keep(torch.tensor(kept, device=device))

    def _checked(
        self, proposal: Proposal, max_tokens: list[int], vocab: int
    ) -> tuple[list[list[int]], Float32[Tensor, "rows columns vocab"] | None]:
        """The proposal up to the first id outside the vocabulary. Raises if it has a wrong shape."""
        who = f"Speculative: {type(self.draft).__name__}"
        lengths = [len(row) for row in proposal.tokens]
        if len(lengths) != len(max_tokens) or any(map(int.__gt__, lengths, max_tokens)):
            raise DecodekitError(
                f"{who} must propose at most {max_tokens} tokens for the rows, got {lengths}."
            )
        probs = proposal.probs if self.sample else None
        if probs is not None:
            shape, longest = tuple(probs.shape), max(lengths)
            if len(shape) != 3 or (shape[0], shape[2]) != (len(max_tokens), vocab) or shape[1] < longest:  # noqa: PLR2004
                raise DecodekitError(
                    f"{who} must give the distributions of its tokens, {(len(max_tokens), longest, vocab)} "
                    f"probabilities, got {shape}."
                )
        return [list(takewhile(lambda token: 0 <= token < vocab, row)) for row in proposal.tokens], probs

    def _draws(self, batch: int, device: torch.device) -> Draws | None:
        """The source of random numbers; None for greedy decoding."""
        if not self.sample:
            return None
        check_generator_device(self, device)
        if self.seeds is None:
            return Draws(self.generator, None, [])
        seeds = prompt_seeds(self, batch).to(device)
        samples = list(range(self.num_samples)) * batch
        return Draws(None, seeds.repeat_interleave(self.num_samples), samples)


def target_logits(
    session: VerifyingSession,
    unread: list[list[int]],
    prompt_logits: Float32[Tensor, "rows vocab"],
    *,
    after_prompt: bool,
) -> list[Float32[Tensor, "places vocab"]]:
    """The model's logits after each unread token of every row, in one pass.

    In the first round, `after_prompt`, the logits after the prompts come first.
    """
    first = prompt_logits[:, None] if after_prompt else prompt_logits[:, None][:, :0]  # [rows 0 vocab]
    if not any(unread):
        return list(first)
    logits = torch.cat([first, extend(session, unread, first.device)], 1)
    return [row[: first.shape[1] + len(tokens)] for row, tokens in zip(logits, unread, strict=True)]


@dataclass(frozen=True)
class ProposalVerifier:
    """Emits the accepted tokens of a proposal, and one more from the model."""

    processor: LogitsProcessor
    draws: Draws | None  # random numbers; None: a token is accepted if it is the argmax

    def verify(
        self,
        row: IndependentRow,
        number: int,
        logits: Float32[Tensor, "places vocab"],
        proposed: list[int],
        draft_probs: Float32[Tensor, "columns vocab"] | None,
    ) -> tuple[IndependentRow, int]:
        """The row after the accepted tokens and one more, and how many were accepted.

        Args:
            number: The index of the row in the batch.
            logits: The model's logits for each proposed token, and for the one after them.
            proposed: The proposed tokens.
            draft_probs: The distributions that they were drawn from; None if they were not drawn.
        """
        for place, target in enumerate(logits[:, None]):
            row, scores = row.process(self.processor, target)
            guess = proposed[place] if place < len(proposed) else None
            draft = None if draft_probs is None or guess is None else draft_probs[place : place + 1]
            token = self._token(scores, guess, draft, number, row.length)
            row = row.emit(token, scores)
            accepted = guess is not None and int(token) == guess
            if row.finished or not accepted:
                return row, place + accepted
        return row, len(proposed)

    def _token(
        self,
        scores: Float32[Tensor, "1 vocab"],
        guess: int | None,
        draft: Float32[Tensor, "1 vocab"] | None,
        number: int,
        step: int,
    ) -> Int64[Tensor, " 1"]:
        """The next token: the guess if it is accepted."""
        if self.draws is None:
            return scores.argmax(-1)
        probs = scores.softmax(-1).double()
        if guess is not None:
            uniform = self.draws.uniform(probs, number, step, Purpose.ACCEPT)
            guess_prob = torch.ones_like(uniform) if draft is None else draft[:, guess].double()
            if bool(uniform * guess_prob < probs[:, guess]):  # with probability min(1, p / q)
                return torch.full_like(scores.argmax(-1), guess)
            probs = residual_probs(probs, guess, draft)
        return self.draws.tokens(probs, [number], [step], Purpose.TARGET)


def residual_probs(probs: Tensor, guess: int, draft: Float32[Tensor, "1 vocab"] | None) -> Tensor:
    r"""The distribution after a refusal, $\max(0, p - q)$, not normalized."""
    if draft is None:  # q is 1 for the guess
        return probs.index_fill(-1, torch.tensor([guess], device=probs.device), 0.0)
    residual = (probs - draft.double()).clamp(min=0)
    # Where p and q differ by rounding only, the residual may be 0: then p itself is as good.
    return torch.where(residual.sum(-1, keepdim=True) > 0, residual, probs)
