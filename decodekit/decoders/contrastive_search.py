"""Contrastive search."""

from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn.functional import normalize, pad

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count, is_number
from decodekit.decoders.base import Decoder, Selection, write_column
from decodekit.decoders.rows import RowState
from decodekit.models.model_outputs import ModelOutputs, ModelOutputsSpec


class Offer(NamedTuple):
    """The candidates of every prompt, which its rows have said, and what they were offered by.

    Attributes:
        probs: Their probabilities after the processors; minus infinity where there are too few.
        scores: All tokens' scores after the processors.
        log_probs: All tokens' scores before them.
        parents: The row whose scores they are.
    """

    probs: Float32[Tensor, "batch k"]
    scores: Float32[Tensor, "batch vocab"]
    log_probs: Float32[Tensor, "batch vocab"]
    parents: Int64[Tensor, " batch"]


class ContrastiveState(NamedTuple):
    """What is decided, and what is offered.

    Attributes:
        text: What is decided, one row a prompt.
        history: The same and one candidate more, one row a candidate: what the processors see.
        parents: The row whose scores each new token of the text was chosen by.
        offer: The candidates; None before the first.
        observed: The model's scores of the current step; None between steps.
        context: Directions of the states of everything that is decided; None before the first look.
        states: Directions of the candidates' states; None where there are none.
    """

    text: RowState
    history: History
    parents: Int64[Tensor, "batch new"]
    offer: Offer | None = None
    model_scores: Float32[Tensor, "rows vocab"] | None = None
    context: Float32[Tensor, "batch capacity width"] | None = None
    states: Float32[Tensor, "batch k width"] | None = None

    @property
    def done(self) -> Bool[Tensor, ""]:
        """Every prompt's text is finished, or one is stuck."""
        return self.text.done


@final
@dataclass(frozen=True)
class ContrastiveSearch(Decoder[ContrastiveState]):
    r"""Says, of the likeliest tokens, one that is likely and whose state is unlike those before it.

    $y_t = \arg\max_{v \in V_k} (1 - \alpha) P(v \mid y_{<t}, x) - \alpha \max_{j < t} \cos(h_v, h_j)$, where
    $V_k$ are the $k$ likeliest tokens, $h_v$ is the last layer's state after $v$, and $h_j$ are those of the
    prompt and of what was said. The processors change $P$; a banned token is never said. Every step reads $k$
    candidates a prompt, and decides between those of the step before: a run takes one step more.

    Args:
        k: Candidates of each step, at least 1; usual values: 4 to 10. 1 is greedy search.
        penalty: The weight $\alpha$ of the likeness to what came before, in [0, 1]; usual: 0.6. 0 is greedy
            search.

    Raises:
        ValueError: If `k` is not an integer of at least 1, or `penalty` is outside [0, 1].
        DecodekitError: In a run, if the model does not show its states.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time", dk.ContrastiveSearch(k=4), max_new_tokens=8)
        >>> out.lengths
        tensor([[8]])

    Source:
        Su et al., 2022, A Contrastive Framework for Neural Text Generation, https://arxiv.org/abs/2202.06417.

    Hugging Face:
        `generate(top_k=k, penalty_alpha=penalty)` of version 4.55, the same tokens; but there a banned token
        can win where fewer than `k` are allowed.
    """

    k: int = 4
    penalty: float = 0.6

    batch_independent = True
    delay = 1  # a candidate is read before it is decided on

    def __post_init__(self) -> None:
        if not is_count(self.k, 1):
            raise ValueError(f"ContrastiveSearch: k must be an integer of at least 1, got {self.k!r:.80}.")
        if not is_number(self.penalty) or not 0 <= self.penalty <= 1:
            raise ValueError(f"ContrastiveSearch: penalty must be in [0, 1], got {self.penalty!r:.80}.")

    @property
    def rows_per_prompt(self) -> int:
        """A row a candidate."""
        return self.k

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """The states that are compared."""
        return ModelOutputsSpec(hidden=True)

    def init(self, history: History, limits: Limits) -> ContrastiveState:
        """Nothing said yet, and nothing offered."""
        firsts = torch.arange(0, len(history.tokens), self.k, device=history.tokens.device)
        decided = history.part(firsts)
        parents = firsts.new_zeros(len(firsts), limits.max_new_tokens)
        return ContrastiveState(RowState.start(decided, limits), history, parents)

    def on_model_outputs(self, model_outputs: ModelOutputs, state: ContrastiveState) -> ContrastiveState:
        """Keeps the prompt's states, at first, and then those of the candidates."""
        if model_outputs.prompt_hidden is not None:
            batch, length, width = model_outputs.prompt_hidden.shape
            context = model_outputs.prompt_hidden.new_zeros(batch, state.history.tokens.shape[1], width)
            context[:, :length] = normalize(model_outputs.prompt_hidden, dim=-1)
            return state._replace(context=context)
        if model_outputs.hidden is None:
            return state
        states = normalize(model_outputs.hidden, dim=-1)
        return state._replace(states=states.view(-1, self.k, states.shape[-1]))

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: ContrastiveState
    ) -> tuple[ContrastiveState, Selection]:
        """Decides between the candidates, and offers the next: those of the chosen row."""
        firsts = torch.arange(0, len(scores), self.k, device=scores.device)
        rows = firsts if state.offer is None else firsts + self._best(state.offer, state)
        if state.offer is not None:
            state = self._decide(rows, state.offer, state)
        picked = scores.index_select(0, rows)
        log_probs = picked if state.model_scores is None else state.model_scores.index_select(0, rows)
        tokens, probs = self._likeliest(picked)
        tokens = torch.where(
            (state.text.finish_code > 0)[:, None], state.text.limits.pad_id, tokens
        ).flatten()
        sources = rows.repeat_interleave(self.k)
        state = state._replace(
            history=state.history.take(sources).append(tokens),
            offer=Offer(probs, picked, log_probs, parents=rows),
            model_scores=None,
            states=None,
        )
        return state, Selection(tokens, sources)

    def stable_prefix(self, state: ContrastiveState) -> list[list[list[int]]]:
        """All that is decided."""
        return state.text.stable_prefix(hypotheses=1)

    def finished(self, state: ContrastiveState) -> Bool[Tensor, " batch"]:
        """Prompts whose text is finished."""
        return state.text.finished

    def finalize(self, state: ContrastiveState) -> Decoded:
        """One hypothesis a prompt."""
        decoded = state.text.decoded(hypotheses=1)
        parents = state.parents[:, None, : decoded.tokens.shape[-1]]
        return replace(decoded, parents=parents.where(decoded.parents >= 0, -1))

    def _likeliest(
        self, scores: Float32[Tensor, "batch vocab"]
    ) -> tuple[Int64[Tensor, "batch k"], Float32[Tensor, "batch k"]]:
        """The tokens of the `k` highest scores, first greedy search's choice, and their probabilities.

        Those are minus infinity for a banned token, and where the vocabulary has too few.
        """
        first = scores.argmax(-1, keepdim=True)
        tokens = scores.scatter(1, first, torch.inf).topk(min(self.k, scores.shape[1])).indices
        probs = scores.softmax(-1).gather(1, tokens)
        probs = probs.where(scores.gather(1, tokens) > -torch.inf, -torch.inf)
        missing = (0, self.k - tokens.shape[1])
        return pad(tokens, missing), pad(probs, missing, value=-torch.inf)

    def _best(self, offer: Offer, state: ContrastiveState) -> Int64[Tensor, " batch"]:
        """Which candidate of each prompt is the best."""
        if state.states is None or state.context is None:
            return torch.zeros_like(offer.parents)
        # [batch k width] x [batch width capacity] -> [batch k capacity]
        cosines = state.states @ state.context.mT
        decided = state.text.history.valid[:, None]
        likeness = cosines.masked_fill(~decided, -torch.inf).amax(-1)
        worth = (1 - self.penalty) * offer.probs - self.penalty * likeness
        return worth.where(offer.probs > -torch.inf, -torch.inf).argmax(-1)

    def _decide(
        self, rows: Int64[Tensor, " batch"], offer: Offer, state: ContrastiveState
    ) -> ContrastiveState:
        """The state after every prompt has said what stands on one of its rows."""
        before, column = state.text, state.history.position - 1
        tokens = state.history.last().index_select(0, rows)
        text, _ = before._replace(model_scores=offer.log_probs).emit(tokens, offer.scores)
        speaks = text.lengths > before.lengths
        parents = write_column(state.parents, before.step, offer.parents, speaks)
        context = state.context
        if context is not None and state.states is not None:
            here = (torch.arange(context.shape[1], device=rows.device) == column)[:, None]
            chosen = state.states.flatten(0, 1).index_select(0, rows)
            context = torch.where(here, chosen[:, None], context)
        return state._replace(text=text, parents=parents, context=context)
