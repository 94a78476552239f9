"""Contrastive search."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize, pad
from typing_extensions import override

from decodekit.core.history import History, write_column
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import FRACTION, at_least, check_fields
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.rows import RowState
from decodekit.models.protocols import ModelOutputs, ModelOutputsSpec
from decodekit.processors.base import Scores


class TokenCandidates(NamedTuple):
    """The candidate tokens of every prompt, one per row, and the scores they were chosen by."""

    # Their probabilities after the processors; minus infinity where there are too few.
    probs: Float32[Tensor, "batch k"]
    scores: Float32[Tensor, "batch vocab"]  # scores of all tokens after the processors
    log_probs: Float32[Tensor, "batch vocab"]  # scores of all tokens before the processors
    parents: Int64[Tensor, " batch"]  # the row that these scores belong to


class ContrastiveState(NamedTuple):
    """The hypotheses so far, and the candidates for their next token."""

    text: RowState  # the hypotheses, one row per prompt
    history: History  # the hypotheses with a candidate appended, one row per candidate, for the processors
    candidates: TokenCandidates | None = None  # None before the first step
    # The model's scores of the current step; None between steps.
    model_scores: Float32[Tensor, "rows vocab"] | None = None
    # Normalized hidden states of all tokens of the hypotheses; None before the first step.
    context: Float32[Tensor, "batch capacity width"] | None = None
    # Normalized hidden states of the candidates; None if there are none.
    states: Float32[Tensor, "batch k width"] | None = None

    @property
    def done(self) -> Bool[Tensor, ""]:
        """True if every hypothesis is finished, or one has every token banned."""
        return self.text.done


@final
@dataclass(frozen=True)
class ContrastiveSearch(Decoder[ContrastiveState]):
    r"""Emits one of the likeliest tokens, and penalizes hidden states similar to earlier ones.

    $y_t = \arg\max_{v \in V_k} (1 - \alpha) P(v \mid y_{<t}, x) - \alpha \max_{j < t} \cos(h_v, h_j)$, where
    $V_k$ are the $k$ likeliest tokens, $h_v$ is the state of the last layer after $v$, and $h_j$ are the
    states of the prompt and of all emitted tokens. The processors change $P$; a banned token is never
    emitted. Every step reads $k$ candidates per prompt, and chooses among the previous ones, so a run takes
    one extra step.

    Args:
        k: Candidates of each step, at least 1; usual values: 4 to 10. 1 is greedy search.
        penalty: The weight $\alpha$ of the similarity to earlier tokens, in [0, 1]; usual: 0.6. 0 is greedy
            search.

    Raises:
        ValueError: If `k` is not an integer of at least 1, or `penalty` is outside [0, 1].
        DecodekitError: In a run, if the model does not return its states.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time", dk.ContrastiveSearch(k=4), max_new_tokens=8)
        >>> out.lengths
        tensor([[8]])

    Source:
        Su et al., 2022, A Contrastive Framework for Neural Text Generation, https://arxiv.org/abs/2202.06417.

    Hugging Face:
        `generate(top_k=k, penalty_alpha=penalty)` of version 4.55, the same tokens. In Hugging Face a banned
        token can win if fewer than `k` tokens are allowed.
    """

    k: int = 4
    penalty: float = 0.6

    batch_independent = True
    delay = 1  # the model reads the candidates before one is chosen

    def __post_init__(self) -> None:
        check_fields(self, k=at_least(1), penalty=FRACTION)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.k

    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        return ModelOutputsSpec(hidden=True)

    @override
    def init(self, history: History, limits: Limits) -> ContrastiveState:
        firsts = torch.arange(0, len(history.tokens), self.k, device=history.tokens.device)
        return ContrastiveState(RowState.start(history.part(firsts), limits), history)

    def on_model_outputs(self, model_outputs: ModelOutputs, state: ContrastiveState) -> ContrastiveState:
        """Keep the states of the prompt at the first call, and of the candidates at later calls."""
        if model_outputs.prompt_hidden is not None:
            batch, length, width = model_outputs.prompt_hidden.shape
            context = model_outputs.prompt_hidden.new_zeros(batch, state.history.tokens.shape[1], width)
            context[:, :length] = normalize(model_outputs.prompt_hidden, dim=-1)
            return state._replace(context=context)
        if model_outputs.hidden is None:
            return state
        states = normalize(model_outputs.hidden, dim=-1)
        return state._replace(states=states.view(-1, self.k, states.shape[-1]))

    def step(self, scores: Scores, state: ContrastiveState) -> tuple[ContrastiveState, Selection]:
        """Choose a candidate, and take the next candidates from the scores of its row."""
        firsts = torch.arange(0, len(scores), self.k, device=scores.device)
        rows = firsts if state.candidates is None else firsts + self._best(state.candidates, state)
        if state.candidates is not None:
            state = self._decide(rows, state.candidates, state)
        chosen = scores.index_select(0, rows)
        log_probs = chosen if state.model_scores is None else state.model_scores.index_select(0, rows)
        tokens, probs = self._likeliest(chosen)
        tokens = torch.where(
            (state.text.finish_code > 0)[:, None], state.text.limits.pad_id, tokens
        ).flatten()
        sources = rows.repeat_interleave(self.k)
        state = state._replace(
            history=state.history.take(sources).append(tokens),
            candidates=TokenCandidates(probs, chosen, log_probs, parents=rows),
            model_scores=None,
            states=None,
        )
        return state, Selection(tokens, sources)

    @override
    def stable_prefix(self, state: ContrastiveState) -> list[list[list[int]]]:
        return state.text.stable_prefix(hypotheses=1)

    @override
    def finished(self, state: ContrastiveState) -> Bool[Tensor, " batch"]:
        return state.text.finished

    @override
    def finalize(self, state: ContrastiveState) -> Decoded:
        return state.text.decoded(hypotheses=1)

    def _likeliest(
        self, scores: Float32[Tensor, "batch vocab"]
    ) -> tuple[Int64[Tensor, "batch k"], Float32[Tensor, "batch k"]]:
        """The tokens of the `k` highest scores, the argmax first, and their probabilities.

        Probabilities are minus infinity for banned tokens, and where the vocabulary has too few.
        """
        first = scores.argmax(-1, keepdim=True)
        tokens = scores.scatter(1, first, torch.inf).topk(min(self.k, scores.shape[1])).indices
        probs = scores.softmax(-1).gather(1, tokens)
        probs = probs.where(scores.gather(1, tokens) > -torch.inf, -torch.inf)
        missing = (0, self.k - tokens.shape[1])
        return pad(tokens, missing), pad(probs, missing, value=-torch.inf)

    def _best(self, candidates: TokenCandidates, state: ContrastiveState) -> Int64[Tensor, " batch"]:
        """The index of the best candidate of each prompt."""
        if state.states is None or state.context is None:
            return torch.zeros_like(candidates.parents)
        # [batch k width] x [batch width capacity] -> [batch k capacity]
        cosines = state.states @ state.context.mT
        decided = state.text.history.valid[:, None]
        similarity = cosines.masked_fill(~decided, -torch.inf).amax(-1)
        objective = (1 - self.penalty) * candidates.probs - self.penalty * similarity
        return objective.where(candidates.probs > -torch.inf, -torch.inf).argmax(-1)

    def _decide(
        self, rows: Int64[Tensor, " batch"], candidates: TokenCandidates, state: ContrastiveState
    ) -> ContrastiveState:
        """The state after every hypothesis has taken the candidate on one of its rows."""
        before, column = state.text, state.history.position - 1
        tokens = state.history.last().index_select(0, rows)
        text, _ = before._replace(model_scores=candidates.log_probs).emit(tokens, candidates.scores)
        emits = text.lengths > before.lengths
        parents = write_column(before.parents, before.step, candidates.parents, emits)
        context = state.context
        if context is not None and state.states is not None:
            newest = (torch.arange(context.shape[1], device=rows.device) == column)[:, None]
            chosen = state.states.flatten(0, 1).index_select(0, rows)
            context = torch.where(newest, chosen[:, None], context)
        return state._replace(text=text._replace(parents=parents), context=context)
