"""The state of a beam search: live and finished hypotheses."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History, write_column
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import Memory
from decodekit.core.result import Decoded
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.errors import DecodingError
from decodekit.scorers.base import PathScorer


class Entry(NamedTuple):
    """One new token of some hypotheses, to be written to their `Records`."""

    tokens: Int64[Tensor, "batch hyps"]
    log_probs: Float32[Tensor, "batch hyps"]
    parents: Int64[Tensor, "batch hyps"]

    def take(self, hyps: Int64[Tensor, "batch chosen"]) -> "Entry":
        """The entries of the chosen hypotheses."""
        return Entry(*(field.gather(1, hyps) for field in self))


class Records(NamedTuple):
    """Every new token of some hypotheses, the model's log-probability of it, and the row it was chosen on."""

    tokens: Int64[Tensor, "batch hyps new"]
    log_probs: Float32[Tensor, "batch hyps new"]
    parents: Int64[Tensor, "batch hyps new"]

    @classmethod
    def empty(cls, batch: int, hyps: int, new: int, device: torch.device) -> "Records":
        """Records without a token."""
        tokens = torch.zeros(batch, hyps, new, dtype=torch.long, device=device)
        return cls(tokens, torch.zeros_like(tokens, dtype=torch.float32), tokens.clone())

    def take(self, hyps: Int64[Tensor, "batch chosen"]) -> "Records":
        """The records of the chosen hypotheses."""
        index = hyps[..., None].expand(-1, -1, self.tokens.shape[-1])
        return Records(*(buffer.gather(1, index) for buffer in self))

    def write(self, step: Int64[Tensor, ""], entry: Entry, where: Tensor | None = None) -> "Records":
        """The records with one more token."""
        return Records(*(write_column(old, step, new, where) for old, new in zip(self, entry, strict=True)))

    def concat(self, *others: "Records") -> "Records":
        """The records of these hypotheses, followed by those of others of the same prompts."""
        return Records(*(torch.cat(buffers, 1) for buffers in zip(self, *others, strict=True)))


class Finished(NamedTuple):
    """The finished hypotheses of each prompt, best first; empty slots score minus infinity."""

    records: Records
    lengths: Int64[Tensor, "batch slots"]
    scores: Float32[Tensor, "batch slots"]
    finish_code: Int64[Tensor, "batch slots"]
    used: Bool[Tensor, "batch slots"]

    @classmethod
    def empty(cls, batch: int, slots: int, new: int, device: torch.device) -> "Finished":
        """A set with nothing in it."""
        zeros = torch.zeros(batch, slots, dtype=torch.long, device=device)
        return cls(
            records=Records.empty(batch, slots, new, device),
            lengths=zeros,
            scores=torch.full_like(zeros, -torch.inf, dtype=torch.float32),
            finish_code=zeros.clone(),
            used=zeros.bool(),
        )

    def take(self, slots: Int64[Tensor, "batch chosen"]) -> "Finished":
        """The hypotheses of the chosen slots."""
        records, *others = self
        return Finished(records.take(slots), *(values.gather(1, slots) for values in others))

    def decoded(self, limits: Limits, number: int) -> Decoded:
        """The best `number` hypotheses of each prompt, as a result. Raises if a score is NaN."""
        if self.scores.isnan().any():
            raise nan_score()
        valid, finish_code = self.used[:, :number], self.finish_code[:, :number]
        lengths = self.lengths[:, :number].masked_fill(~valid, 0)
        new = max(int(lengths.max()), 1)
        is_padding = torch.arange(new, device=lengths.device) >= lengths[..., None]
        tokens, log_probs, parents = (buffer[:, :number, :new] for buffer in self.records)
        return Decoded(
            tokens=tokens.masked_fill(is_padding, limits.pad_id),
            lengths=lengths,
            finish_reason=[
                [reason if is_valid else "missing" for reason, is_valid in zip(*row, strict=True)]
                for row in zip(limits.reasons(finish_code), valid.tolist(), strict=True)
            ],
            valid=valid,
            token_log_probs=log_probs.masked_fill(is_padding, 0.0),
            score=self.scores[:, :number],
            parents=parents.masked_fill(is_padding, -1),
            pad_id=limits.pad_id,
            finish_code=finish_code,
        )


class BeamState(NamedTuple):
    """The state of a beam search."""

    history: History
    limits: Limits
    model_scores: Float32[Tensor, "rows vocab"] | None  # log-probabilities at this step; None between steps
    attention: Float32[Tensor, "rows context"] | None  # likewise, if the scorer asks for it
    log_probs: Float32[Tensor, "batch beams"]  # sums of processed scores; minus infinity for unused beams
    partial_scores: Float32[Tensor, "batch beams"] | None  # rank the hypotheses under a stepwise scorer
    live: Records
    memory: Memory  # the scorer's
    stopping: Stopping
    finished: Finished
    pruned_bound: Float32[Tensor, " batch"]  # upper bound on the score of every pruned hypothesis
    active: Bool[Tensor, " batch"]  # prompts whose search goes on
    all_banned: Bool[Tensor, " batch"]  # every token of every beam was banned, and no hypothesis had ended
    done: Bool[Tensor, ""]
    progress: Memory = ()  # with constraints: the states of their automata, for every row

    @classmethod
    def start(
        cls, history: History, limits: Limits, scorer: PathScorer, *, beams: int, slots: int
    ) -> "BeamState":
        """One live hypothesis, the prompt, on the first beam of each prompt; the other beams are unused."""
        batch, device = len(history.tokens) // beams, history.tokens.device
        is_first = torch.arange(beams, device=device) == 0
        log_probs = torch.full((batch, beams), -torch.inf, dtype=torch.float32, device=device)
        log_probs = log_probs.masked_fill(is_first, 0.0)
        return cls(
            history=history,
            limits=limits,
            model_scores=None,
            attention=None,
            log_probs=log_probs,
            partial_scores=log_probs.clone() if scorer.stepwise else None,
            live=Records.empty(batch, beams, limits.max_new_tokens, device),
            memory=scorer.init(history, limits),
            stopping=limits.start(history),
            finished=Finished.empty(batch, slots, limits.max_new_tokens, device),
            pruned_bound=torch.full((batch,), -torch.inf, dtype=torch.float32, device=device),
            active=torch.ones(batch, dtype=torch.bool, device=device),
            all_banned=torch.zeros(batch, dtype=torch.bool, device=device),
            done=torch.zeros((), dtype=torch.bool, device=device),
        )

    @property
    def step(self) -> Int64[Tensor, ""]:
        """Number of new tokens of every live hypothesis."""
        return self.history.position - self.limits.prompt_length

    def stable_prefix(self, num_return: int) -> list[list[list[int]]]:
        """Tokens that no further step can change, of the best `num_return` hypotheses of each prompt."""
        live = _as_lists(self.live.tokens, self.step.expand_as(self.log_probs), self.log_probs > -torch.inf)
        finished = _as_lists(self.finished.records.tokens, self.finished.lengths, self.finished.used)
        prefixes = []
        for hypotheses, ended, is_active in zip(live, finished, self.active.tolist(), strict=True):
            # While a search goes on, no more hypotheses are sure to be returned than have finished, and one.
            growing = [common_prefix(hypotheses + ended)] * max(1, len(ended))
            prefixes.append((growing if is_active else ended)[:num_return] or [[]])
        return prefixes

    def decoded(self, num_return: int) -> Decoded:
        """The best `num_return` hypotheses of each prompt. Raises if one has every token banned."""
        if self.all_banned.any():
            raise_if_all_banned(self.all_banned, self.history)
        return self.finished.decoded(self.limits, num_return)


def common_prefix(hypotheses: list[list[int]]) -> list[int]:
    """The longest prefix that all hypotheses share."""
    prefix = []
    for tokens in zip(*hypotheses, strict=False):
        if len(set(tokens)) > 1:
            break
        prefix.append(tokens[0])
    return prefix


def nan_score() -> DecodingError:
    """The error for a scorer that returns NaN, which would rank above every number."""
    return DecodingError(
        "decode: a scorer must give every hypothesis a number, or minus infinity to what is not allowed, "
        "and gave NaN. Look at what it does with short and long texts, and with log-probabilities below 0."
    )


def _as_lists(
    tokens: Int64[Tensor, "batch hyps new"],
    lengths: Int64[Tensor, "batch hyps"],
    exists: Bool[Tensor, "batch hyps"],
) -> list[list[list[int]]]:
    """The ids of every hypothesis that exists, per prompt."""
    prompts = zip(tokens.tolist(), lengths.tolist(), exists.tolist(), strict=True)
    return [[ids[:length] for ids, length, is_real in zip(*hyps, strict=True) if is_real] for hyps in prompts]
