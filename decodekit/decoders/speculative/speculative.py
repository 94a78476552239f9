"""Speculative decoding."""

from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.prompt_seeds import read_seeds
from decodekit.decoders.speculative.acceptance import Acceptance, Tally
from decodekit.decoders.speculative.drafts.base import Draft, Proposal
from decodekit.decoders.speculative.draws import Draws
from decodekit.decoders.speculative.propose import DraftSampler, stateless
from decodekit.decoders.speculative.speculative_row import SpeculativeRow, decoded
from decodekit.decoders.speculative.verify import ProposalVerifier
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model, VerifyingSession
from decodekit.models.rereading import start_verifying
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class Speculative(CustomLoop[Acceptance]):
    r"""Lets a cheap draft propose several tokens, which the model verifies in one pass: lossless, and faster.

    Greedily: a proposed token is accepted if it is the likeliest, and the first that is not is replaced by
    the one that is: exactly what `Greedy` says. Sampling: a token x that was drawn from the draft's q is
    accepted with probability $\min(1, p(x) / q(x))$, else one is drawn from $\max(0, p - q)$, normalized,
    in its place: then every token is distributed as p says, whatever q is. With the last accepted token comes
    one more of the model's own, so every pass says between 1 and `tokens` + 1.

    p is what the processors make of the model's logits. They see every token once, in order, by rows that
    are at different lengths; memories, second models and numbers given for each prompt are those of the row,
    and stopping criteria are asked token by token. The draft's logits go through the processors that
    remember nothing too, which makes more of its tokens acceptable and changes nothing else.

    `Decoded.report` is an `Acceptance`.

    Args:
        draft: What proposes: `DraftModel`, `PromptLookup`, `EarlyExit`, or a `Draft` of your own.
        tokens: Proposed tokens a pass at most, at least 1. Usual values: 3-10; the better the draft, the
            more.
        sample: Whether to draw tokens, as `Sample` does, or to say the likeliest, as `Greedy` does.
        num_samples: Samples of each prompt, at least 1.
        generator: The stream of all draws; None is torch's global one.
        seeds: One integer a prompt, instead of a generator: then a prompt's result does not depend on the
            batch.

    Raises:
        TypeError: If `draft` is not a `Draft`.
        ValueError: If `tokens` or `num_samples` is not an integer of at least 1, `sample` is not True or
            False, both `generator` and `seeds` are given, or any of the three where nothing is drawn.
        DecodekitError: In a run, if there are not as many seeds as prompts, if the generator is on another
            device than the model, or if the draft proposes what it was not asked for.

    Example:
        >>> model, prompts = dk.load(), ["Once upon a time there was", "she was as beautiful as the"]
        >>> out = dk.decode(model, prompts, Speculative(dk.PromptLookup()), max_new_tokens=20)
        >>> out.texts == dk.decode(model, prompts, dk.Greedy(), max_new_tokens=20).texts
        True

    Source:
        Leviathan, Kalman & Matias, 2023, https://arxiv.org/abs/2211.17192, algorithm 1; Chen et al., 2023,
        https://arxiv.org/abs/2302.01318.

    Hugging Face:
        Assisted generation, `generate(assistant_model=...)` and its kin, for one prompt at a time. Its greedy
        tokens are these; its samples have the same distribution, and come from other draws.
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
                f"Speculative: draft must be a Draft, got {self.draft!r:.80}. Use dk.DraftModel(model), "
                "dk.PromptLookup() or dk.EarlyExit(layer)."
            )
        for name in ("tokens", "num_samples"):
            if not is_count(getattr(self, name), 1):
                raise ValueError(
                    f"Speculative: {name} must be an integer of at least 1, got {getattr(self, name)!r}."
                )
        if type(self.sample) is not bool:
            raise ValueError(f"Speculative: sample must be True or False, got {self.sample!r}.")
        seeds = read_seeds("Speculative", self.generator, self.seeds)
        if not self.sample and (self.num_samples > 1 or self.generator is not None or seeds is not None):
            raise ValueError(
                "Speculative: num_samples, generator and seeds must be left out where nothing is drawn. Pass "
                "sample=True to draw."
            )
        object.__setattr__(self, "seeds", seeds)  # a frozen field

    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Acceptance]]:
        """Proposes and verifies until every hypothesis has ended."""
        capacity = request.prompt.tokens.shape[1] + request.max_new_tokens
        session, logits = start_verifying(
            model, request.prompt, rows_per_prompt=self.num_samples, capacity=capacity
        )
        limits = Limits.of(request, logits.shape[-1])
        history = request.prompt.to(logits.device).history(capacity, self.num_samples)
        draws = self._draws(len(request.prompt.tokens), logits.device)
        lines = SpeculativeRow.start(history, processor, limits)
        drafting = self.draft.start(
            model, request.prompt, rows_per_prompt=self.num_samples, capacity=capacity
        )
        verifier, tally = ProposalVerifier(processor, draws), Tally(len(lines), self.tokens)
        said: list[list[int]] = [[] for _ in lines]  # by each row since the draft was last asked
        while True:
            most = [0 if line.finished else min(self.tokens, line.left - 1) for line in lines]
            choose = DraftSampler(stateless(processor, greedy=not self.sample), draws, lines)
            drafted, drafts = self._checked(drafting.propose(said, most, choose), most, limits.vocab)
            # What each row has not read yet: its last token, except after the prompt, and the proposal.
            reads = [[*new[-1:], *guessed] for new, guessed in zip(said, drafted, strict=True)]
            own = places(session, reads, logits, after_prompt=tally.rounds == 0)
            before, accepted = [line.said for line in lines], [0] * len(lines)
            for row, line in enumerate(lines):
                if not line.finished:
                    probs = None if drafts is None else drafts[row]
                    lines[row], accepted[row] = verifier.follow(line, row, own[row], drafted[row], probs)
            kept = [len(new[-1:]) + number for new, number in zip(said, accepted, strict=True)]
            said = [line.new(since) for line, since in zip(lines, before, strict=True)]
            tally.add(drafted, accepted, said, [bool(read) for read in reads])
            said = [[] if line.finished else new for line, new in zip(lines, said, strict=True)]
            yield
            if all(line.finished for line in lines):
                return decoded(lines, self.num_samples).with_report(tally.report(self.num_samples))
            session.keep(torch.tensor(kept, device=logits.device))

    def _checked(
        self, proposal: Proposal, most: list[int], vocab: int
    ) -> tuple[list[list[int]], Float32[Tensor, "rows columns vocab"] | None]:
        """The proposal, up to ids that the model cannot say. Raises where it is not what was asked for."""
        who = f"Speculative: {type(self.draft).__name__}"
        lengths = [len(row) for row in proposal.tokens]
        if len(lengths) != len(most) or any(map(int.__gt__, lengths, most)):
            raise DecodekitError(f"{who} must propose at most {most} tokens for the rows, got {lengths}.")
        probs = proposal.probs if self.sample else None  # of no use otherwise
        if probs is not None:
            shape, longest = tuple(probs.shape), max(lengths)
            if len(shape) != 3 or (shape[0], shape[2]) != (len(most), vocab) or shape[1] < longest:  # noqa: PLR2004
                raise DecodekitError(
                    f"{who} must say what its tokens were drawn from, {(len(most), longest, vocab)} "
                    f"probabilities, got {shape}."
                )
        known = [
            next((place for place, token in enumerate(row) if not 0 <= token < vocab), len(row))
            for row in proposal.tokens
        ]
        return [row[:number] for row, number in zip(proposal.tokens, known, strict=True)], probs

    def _draws(self, batch: int, device: torch.device) -> Draws | None:
        """Where random numbers come from; None: nothing is drawn."""
        if not self.sample:
            return None
        if self.generator is not None and self.generator.device.type != device.type:
            raise DecodekitError(
                "Speculative: the generator must be on the model's device, got one on "
                f"{self.generator.device} for {device}. Make it with torch.Generator({device.type!r})."
            )
        if self.seeds is None:
            return Draws(self.generator, None, [])
        if len(self.seeds) != batch:
            raise DecodekitError(
                f"Speculative: there must be one seed a prompt, got {len(self.seeds)} seeds for {batch} "
                "prompts."
            )
        seeds = torch.as_tensor(self.seeds, dtype=torch.long, device=device)
        samples = list(range(self.num_samples)) * batch
        return Draws(None, seeds.repeat_interleave(self.num_samples), samples)


def places(
    session: VerifyingSession,
    reads: list[list[int]],
    first: Float32[Tensor, "rows vocab"],
    *,
    after_prompt: bool,
) -> list[Float32[Tensor, "places vocab"]]:
    """Every row's logits after what it reads, token by token, in one pass if anything is to be read.

    Args:
        session: The model's run.
        reads: What each row reads; nothing where it has ended.
        first: The logits after the prompts.
        after_prompt: Whether nothing was read since, so that these count too.
    """
    start = first[:, None] if after_prompt else first[:, None][:, :0]  # [rows 0 vocab]: nothing
    longest = max(map(len, reads))
    if longest == 0:
        return list(start)
    counts = torch.tensor([len(row) for row in reads], device=first.device)
    padded = [[*row, *[0] * (longest - len(row))] for row in reads]
    logits = torch.cat([start, session.extend(torch.tensor(padded, device=first.device), counts)], 1)
    return [row[: start.shape[1] + len(read)] for row, read in zip(logits, reads, strict=True)]
