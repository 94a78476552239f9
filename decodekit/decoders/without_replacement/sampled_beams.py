"""The beams of decoders that sample several different hypotheses in one search."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.core.result import Decoded
from decodekit.decoders.base import Selection
from decodekit.decoders.beam.state import Entry, Finished, Records, common_prefix
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.decoders.without_replacement.inclusion import Inclusion

# Beside the codes of `Limits`: every next token is banned, so no hypothesis begins like this.
DEAD_END = -1


class Candidates(NamedTuple):
    """The candidates for the next beams: every one-token continuation of every beam."""

    # Log-probabilities of the candidates. A finished beam has one candidate, itself, as token 0.
    log_probs: Float64[Tensor, "batch beams vocab"]
    finished: Bool[Tensor, "batch beams"]
    finish_code: Int64[Tensor, "batch beams"]  # with the dead ends of this step

    def flat(
        self, values: Float64[Tensor, "batch beams vocab"], finished: Float64[Tensor, "batch beams"]
    ) -> Float64[Tensor, "batch candidates"]:
        """`values` of unfinished beams and `finished` of finished ones; candidate `beam * vocab + token`."""
        first = torch.arange(values.shape[-1], device=values.device) == 0
        itself = torch.where(first, finished[..., None], -torch.inf)
        return torch.where(self.finished[..., None], itself, values).flatten(1)


class SampledBeams(NamedTuple):
    """A sample of hypotheses; finished ones keep their places among the beams."""

    history: History
    limits: Limits
    model_scores: Float32[Tensor, "rows vocab"] | None  # of the current step
    # Log-probabilities under the sampled distribution; minus infinity for beams that do not exist.
    log_probs: Float64[Tensor, "batch beams"]
    records: Records
    lengths: Int64[Tensor, "batch beams"]  # new tokens, the end id included
    finish_code: Int64[Tensor, "batch beams"]  # 0: not finished
    stopping: Stopping
    done: Bool[Tensor, ""]  # all are finished, or some prompt has dead ends only
    memory: Memory = ()  # of the decoder

    @classmethod
    def start(cls, history: History, limits: Limits, beams: int) -> "SampledBeams":
        """One beam per prompt, without new tokens; it stands for all hypotheses."""
        device, batch = history.tokens.device, len(history.tokens) // beams
        zeros = torch.zeros(batch, beams, dtype=torch.long, device=device)
        is_root = torch.arange(beams, device=device) == 0
        return cls(
            history=history,
            limits=limits,
            model_scores=None,
            log_probs=torch.zeros_like(zeros, dtype=torch.float64).masked_fill(~is_root, -torch.inf),
            records=Records.empty(batch, beams, limits.max_new_tokens, device),
            lengths=zeros,
            finish_code=zeros.clone(),
            stopping=limits.start(history),
            done=torch.zeros((), dtype=torch.bool, device=device),
        )

    @property
    def step(self) -> Int64[Tensor, ""]:
        """New tokens of unfinished beams."""
        return self.history.position - self.limits.prompt_length

    @property
    def valid(self) -> Bool[Tensor, "batch beams"]:
        """True for beams that exist and are not dead ends."""
        return (self.log_probs > -torch.inf) & (self.finish_code != DEAD_END)

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """True for prompts with all beams finished."""
        return ((self.finish_code != 0) | (self.log_probs == -torch.inf)).all(-1)

    def expand(self, scores: Float32[Tensor, "rows vocab"]) -> Candidates:
        """The candidates, with the normalized processed scores as log-probabilities."""
        batch, beams = self.log_probs.shape
        all_banned = scores.amax(-1, keepdim=True) == -torch.inf
        added = scores.double().log_softmax(-1).masked_fill(all_banned, -torch.inf).view(batch, beams, -1)
        is_dead = (self.finish_code == 0) & (self.log_probs > -torch.inf) & all_banned.view(batch, beams)
        # A dead end keeps its place too: it is sampled like any other, and contains no hypothesis.
        finish_code = self.finish_code.masked_fill(is_dead, DEAD_END)
        candidates = Candidates(self.log_probs[..., None] + added, finish_code != 0, finish_code)
        flat = candidates.flat(candidates.log_probs, self.log_probs)
        return candidates._replace(log_probs=flat.view(batch, beams, -1))

    def select(
        self,
        chosen: Int64[Tensor, "batch beams"],
        exists: Bool[Tensor, "batch beams"],
        candidates: Candidates,
    ) -> tuple["SampledBeams", Selection]:
        """The beams after a step, which are the candidates `chosen` where `exists`."""
        batch, beams, vocab = candidates.log_probs.shape
        sources, tokens = chosen // vocab, chosen % vocab
        rows = torch.arange(batch, device=chosen.device)[:, None] * beams + sources
        emits = exists & ~candidates.finished.gather(1, sources)
        tokens = torch.where(emits, tokens, self.limits.pad_id)
        log_probs = torch.zeros_like(chosen, dtype=torch.float32)
        if self.model_scores is not None:
            own = self.model_scores.log_softmax(-1).view(batch, -1).gather(1, chosen)
            log_probs = torch.where(emits, own, log_probs)
        history = self.history.take(rows.flatten()).append(tokens.flatten())
        before = reorder_memory(self.stopping, rows.flatten())
        finish_code, stopping = self.limits.finish(history, log_probs.flatten(), before)
        finish_code = torch.where(
            emits, finish_code.view(batch, beams), candidates.finish_code.gather(1, sources)
        )
        after = self._replace(
            history=history,
            model_scores=None,
            log_probs=candidates.log_probs.flatten(1).gather(1, chosen).masked_fill(~exists, -torch.inf),
            records=self.records.take(sources).write(self.step, Entry(tokens, log_probs, rows), emits),
            lengths=self.lengths.gather(1, sources) + emits,
            finish_code=finish_code,
            stopping=stopping,
        )
        done = ((finish_code != 0) | ~exists).all() | (~after.valid.any(-1)).any()
        return after._replace(done=done), Selection(tokens.flatten(), rows.flatten())

    def stable_prefix(self) -> list[list[list[int]]]:
        """The common prefix of a prompt's hypotheses, or all of them once all are finished."""
        fields = (self.records.tokens, self.lengths, self.finish_code, self.valid)
        prompts: list[list[list[int]]] = []
        for beams in zip(*(field.tolist() for field in fields), strict=True):
            each = zip(*beams, strict=True)
            emitted = [(tokens[:length], code) for tokens, length, code, is_valid in each if is_valid]
            hypotheses = [tokens for tokens, _ in emitted]
            # While some are unfinished, all of them but one may still come to a dead end.
            all_finished = all(code for _, code in emitted)
            prompts.append(hypotheses if all_finished else [common_prefix(hypotheses)])
        return prompts

    def decoded(
        self,
        score: Float64[Tensor, "batch beams"],
        rank: Float64[Tensor, "batch beams"],
        log_inclusion: Float64[Tensor, "batch beams"],
        threshold: Float64[Tensor, " batch"] | None = None,
    ) -> Decoded[Inclusion]:
        """The result, the highest `rank` first, dead ends last. Raises if a prompt has dead ends only."""
        raise_if_all_banned(~self.valid.any(-1), self.history)
        order = rank.masked_fill(~self.valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        scores, log_probs, included = (
            values.masked_fill(~self.valid, -torch.inf) for values in (score, self.log_probs, log_inclusion)
        )
        finish_code = self.finish_code.masked_fill(~self.valid, 0)
        finished = Finished(self.records, self.lengths, scores.float(), finish_code, self.valid)
        decoded = finished.take(order).decoded(self.limits, order.shape[1])
        log_probs, included = log_probs.gather(1, order), included.gather(1, order)
        return decoded.with_report(
            Inclusion(log_probs=log_probs, log_inclusion=included, threshold=threshold)
        )
