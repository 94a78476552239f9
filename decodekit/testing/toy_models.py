"""Models small enough to be solved in the head, or to be enumerated."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary


class MarkovModel:
    """The next token depends on the last one only, by a matrix of probabilities.

    Args:
        transitions: `transitions[last][next]`; rows sum to 1.
        end_ids: Ids that end a text.

    Example:
        >>> model = MarkovModel([[0.1, 0.9], [0.5, 0.5]])
        >>> dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=1).log_prob.exp()
        tensor([[0.9000]])
    """

    def __init__(self, transitions: Sequence[Sequence[float]], end_ids: tuple[int, ...] = ()) -> None:
        self.log_probs = torch.tensor(transitions, dtype=torch.float64).log()
        self.vocabulary = Vocabulary(size=len(transitions), end_ids=end_ids)

    def start(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["ToySession", Float32[Tensor, "rows vocab"]]:
        """The logits after the last token of every prompt."""
        del capacity  # nothing is allocated
        last = prompt.tokens[:, -1].repeat_interleave(rows_per_prompt)
        session = ToySession(
            last,
            update=lambda _, tokens: tokens,
            logits=lambda state: self.log_probs[state].float(),
            batch=len(prompt.tokens),
        )
        return session, session.logits()


class HashModel:
    """The next token depends on the whole text, at random but always the same.

    The logits are a hash of the text, so whatever goes to a wrong row shows at once.

    Args:
        vocab: Number of tokens.
        seed: Picks the model.
        scale: Standard deviation of the logits; above 3 most distributions are peaked.
        end_ids: Ids that end a text.

    Example:
        >>> model = HashModel(vocab=5)
        >>> dk.decode(model, [[0, 1]], dk.Greedy(), max_new_tokens=3).tokens.shape
        torch.Size([1, 1, 3])
    """

    def __init__(self, vocab: int, seed: int = 0, scale: float = 2.0, end_ids: tuple[int, ...] = ()) -> None:
        self.vocab = vocab
        self.seed = seed
        self.scale = scale
        self.vocabulary = Vocabulary(size=vocab, end_ids=end_ids)

    def start(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["ToySession", Float32[Tensor, "rows vocab"]]:
        """The logits after every prompt, padding ignored."""
        del capacity  # nothing is allocated
        state = torch.full((len(prompt.tokens),), self.seed)
        for tokens, mask in zip(prompt.tokens.T, prompt.mask.T, strict=True):
            state = torch.where(mask, self._update(state, tokens), state)
        session = ToySession(
            state.repeat_interleave(rows_per_prompt), self._update, self._logits, batch=len(prompt.tokens)
        )
        return session, session.logits()

    def start_captured(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["ToySession", Float32[Tensor, "rows vocab"]]:
        """The same: a pass is a few operations, which need not be recorded."""
        return self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)

    @staticmethod
    def _update(state: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
        return rng.mix(rng.mix(state) + tokens)

    def _logits(self, state: Int64[Tensor, " rows"]) -> Float32[Tensor, "rows vocab"]:
        tokens = torch.arange(self.vocab)
        # Two uniform numbers make one of a normal distribution (Box and Muller, 1958).
        seeds, streams = state[:, None].expand(-1, self.vocab).flatten(), tokens.repeat(len(state))
        first, second = (rng.uniform(seeds, streams, torch.tensor(draw)) for draw in (0, 1))
        normal = (-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos()
        return (self.scale * normal).view(-1, self.vocab).float()


class ToySession:
    """A session whose whole cache is one number a row."""

    def __init__(
        self,
        state: Int64[Tensor, " rows"],
        update: Callable[[Tensor, Tensor], Tensor],
        logits: Callable[[Tensor], Tensor],
        batch: int,
    ) -> None:
        self.state, self.batch = state, batch
        self._update = update
        self._logits = logits

    @property
    def can_evict(self) -> bool:
        """Prompts can leave."""
        return True

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some prompts only."""
        self.state = self.state.view(self.batch, -1).index_select(0, prompts).flatten()
        self.batch = len(prompts)

    def can_merge(self) -> bool:
        """Other sessions can be merged."""
        return True

    def merge(self, other: "ToySession") -> None:
        """Goes on with another run's prompts after its own."""
        self.state = torch.cat([self.state, other.state])
        self.batch += other.batch

    def logits(self) -> Float32[Tensor, "rows vocab"]:
        """The logits of every row's next token."""
        return self._logits(self.state)

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        state = self.state if source_rows is None else self.state[source_rows]
        self.state = self._update(state, tokens)
        return self.logits()
