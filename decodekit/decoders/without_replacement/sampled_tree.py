"""What is shared by decoders that draw several different hypotheses at once, from the root down."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import reorder_memory
from decodekit.core.result import Decoded
from decodekit.decoders.base import Selection
from decodekit.decoders.beam.finished import Finished
from decodekit.decoders.beam.records import Entry, Records
from decodekit.decoders.beam.state import common_start
from decodekit.decoders.rows import raise_if_all_banned

# Beside the reasons in `Limits`: every token was banned, so no hypothesis begins like this.
DEAD_END = -1


class Continuations(NamedTuple):
    """What the hypotheses in the sample could become with one step.

    Attributes:
        log_probs: Of each beam with each token. What does not go on is itself alone, as token 0.
        stays: Beams that do not go on.
        why: What has finished each beam, dead ends of this step included.
    """

    log_probs: Float64[Tensor, "batch beams vocab"]
    stays: Bool[Tensor, "batch beams"]
    finish_code: Int64[Tensor, "batch beams"]

    def with_those_that_stay(
        self, values: Float64[Tensor, "batch beams vocab"], own: Float64[Tensor, "batch beams"]
    ) -> Float64[Tensor, "batch continuations"]:
        """`values` of what goes on, `own` of what does not, flat: continuation `beam * vocab + token`."""
        first = torch.arange(values.shape[-1], device=values.device) == 0
        alone = torch.where(first, own[..., None], -torch.inf)
        return torch.where(self.stays[..., None], alone, values).flatten(1)


class SampledTree(NamedTuple):
    """A sample of hypotheses; the finished ones keep their places among the others.

    Attributes:
        history: What they have said.
        limits: Where they end.
        observed: The model's log-probabilities of the current step; None between steps.
        log_probs: Of each under the distribution that is drawn from; minus infinity where there is none.
        records: What is written down about them.
        lengths: New tokens, the end id included.
        why: What has finished each; 0 while it goes on.
        stopping: What the stopping criteria remember.
        done: All are finished, or for some prompt there are none but dead ends.
    """

    history: History
    limits: Limits
    model_scores: Float32[Tensor, "rows vocab"] | None
    log_probs: Float64[Tensor, "batch beams"]
    records: Records
    lengths: Int64[Tensor, "batch beams"]
    finish_code: Int64[Tensor, "batch beams"]
    stopping: Stopping
    done: Bool[Tensor, ""]

    def with_model_scores(self, scores: Float32[Tensor, "rows vocab"] | None) -> "SampledTree":
        """The same tree, which knows the model's scores of the current step."""
        return self._replace(model_scores=None if scores is None else scores.log_softmax(-1))

    @classmethod
    def start(cls, history: History, limits: Limits, beams: int) -> "SampledTree":
        """One hypothesis, which has said nothing; it stands for all of them."""
        device, batch = history.tokens.device, len(history.tokens) // beams
        nothing = torch.zeros(batch, beams, dtype=torch.long, device=device)
        is_root = torch.arange(beams, device=device) == 0
        log_probs = torch.zeros_like(nothing, dtype=torch.float64).masked_fill(~is_root, -torch.inf)
        return cls(
            history=history,
            limits=limits,
            model_scores=None,
            log_probs=log_probs,
            records=Records.empty(batch, beams, limits.max_new_tokens, device),
            lengths=nothing,
            finish_code=nothing.clone(),
            stopping=limits.start(history),
            done=torch.zeros((), dtype=torch.bool, device=device),
        )

    @property
    def step(self) -> Int64[Tensor, ""]:
        """How many tokens have been drawn for what goes on."""
        return self.history.position - self.limits.prompt_length

    @property
    def valid(self) -> Bool[Tensor, "batch beams"]:
        """Which hypotheses there are, without dead ends."""
        return (self.log_probs > -torch.inf) & (self.finish_code != DEAD_END)

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """Prompts of which no hypothesis goes on."""
        return ((self.finish_code != 0) | (self.log_probs == -torch.inf)).all(-1)

    def grow(self, scores: Float32[Tensor, "rows vocab"]) -> Continuations:
        """What could come next, with the probabilities that the scores leave it."""
        batch, beams = self.log_probs.shape
        nothing = scores.amax(-1, keepdim=True) == -torch.inf
        added = scores.double().log_softmax(-1).masked_fill(nothing, -torch.inf)
        is_dead = (self.finish_code == 0) & (self.log_probs > -torch.inf) & nothing.view(batch, beams)
        # A dead end keeps its place too: it is drawn like any other, and what it stands for is empty.
        finish_code = self.finish_code.masked_fill(is_dead, DEAD_END)
        grown = Continuations(
            self.log_probs[..., None] + added.view(batch, beams, -1), finish_code != 0, finish_code
        )
        return grown._replace(
            log_probs=grown.with_those_that_stay(grown.log_probs, self.log_probs).view(batch, beams, -1)
        )

    def keep(
        self, chosen: Int64[Tensor, "batch beams"], exists: Bool[Tensor, "batch beams"], grown: Continuations
    ) -> tuple["SampledTree", Selection]:
        """The sample after a step.

        Args:
            chosen: Which continuations are drawn, flat as in `Continuations`.
            exists: False where there are not so many.
            grown: What could come next.
        """
        batch, beams, vocab = grown.log_probs.shape
        sources, tokens = chosen // vocab, chosen % vocab
        rows = torch.arange(batch, device=chosen.device)[:, None] * beams + sources
        speaks = exists & ~grown.stays.gather(1, sources)
        tokens = torch.where(speaks, tokens, self.limits.pad_id)
        own = torch.zeros_like(chosen, dtype=torch.float32)
        if self.model_scores is not None:
            own = torch.where(speaks, self.model_scores.view(batch, -1).gather(1, chosen), own)
        entry = Entry(tokens, own, rows)
        history = self.history.take(rows.flatten()).append(tokens.flatten())
        before = reorder_memory(self.stopping, rows.flatten())
        fired, stopping = self.limits.finish(history, own.flatten(), before)
        finish_code = torch.where(speaks, fired.view(batch, beams), grown.finish_code.gather(1, sources))
        after = self._replace(
            history=history,
            model_scores=None,
            log_probs=grown.log_probs.flatten(1).gather(1, chosen).masked_fill(~exists, -torch.inf),
            records=self.records.take(sources).write(self.step, entry, speaks),
            lengths=self.lengths.gather(1, sources) + speaks,
            finish_code=finish_code,
            stopping=stopping,
        )
        all_banned = ~after.valid.any(-1)
        done = ((finish_code != 0) | ~exists).all() | all_banned.any()
        return after._replace(done=done), Selection(tokens.flatten(), rows.flatten())

    def stable_prefix(self) -> list[list[list[int]]]:
        """What all of a prompt's hypotheses begin with, or they themselves once none goes on."""
        new = self.records.tokens.tolist()
        fields = zip(self.lengths.tolist(), self.finish_code.tolist(), self.valid.tolist(), strict=True)
        prompts: list[list[list[int]]] = []
        for rows, (lengths, finish_code, valid) in zip(new, fields, strict=True):
            beams = zip(rows, lengths, finish_code, valid, strict=True)
            said = [(tokens[:length], reason) for tokens, length, reason, is_valid in beams if is_valid]
            if all(reason for _, reason in said):
                prompts.append([tokens for tokens, _ in said])
            else:  # those that go on may all come to a dead end, but for one
                prompts.append([common_start([tokens for tokens, _ in said])])
        return prompts

    def decoded(self, score: Float64[Tensor, "batch beams"], order: Int64[Tensor, "batch beams"]) -> Decoded:
        """The result.

        Args:
            score: What hypotheses are ranked by.
            order: The hypotheses as they come, those that are not valid last.

        Raises:
            DecodingError: If for some prompt every token of every hypothesis was banned.
        """
        raise_if_all_banned(~self.valid.any(-1), self.history)
        valid = self.valid.gather(1, order)
        finished = Finished(
            records=self.records.take(order),
            lengths=self.lengths.gather(1, order),
            scores=score.gather(1, order).masked_fill(~valid, -torch.inf).float(),
            finish_code=self.finish_code.gather(1, order).masked_fill(~valid, 0),
            used=valid,
        )
        return finished.decoded(self.limits, valid.shape[1])
