"""Models small enough to be solved by hand, or to be enumerated."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary
from decodekit.models.protocols import ModelOutputs, ModelOutputsSpec

# Types that signatures of the models repeat.
Logits = Float32[Tensor, "rows vocab"]
State = Int64[Tensor, " rows"]

_WIDTH = 4
_LAYERS = {"low": (0, 2), "high": (4, 6)}


class MarkovModel:
    """A model whose next token depends on the last one only, by a matrix of probabilities.

    Args:
        transitions: `transitions[last][next]`; rows sum to 1.
        end_ids: Ids that end a hypothesis.

    Example:
        >>> model = MarkovModel([[0.1, 0.9], [0.5, 0.5]])
        >>> dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=1).log_prob.exp()
        tensor([[0.9000]])
    """

    def __init__(self, transitions: Sequence[Sequence[float]], end_ids: tuple[int, ...] = ()) -> None:
        self.log_probs = torch.tensor(transitions, dtype=torch.float64).log()
        self.vocabulary = Vocabulary(size=len(transitions), end_ids=end_ids)

    def start(self, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> tuple["ToySession", Logits]:
        """The logits after the last token of every prompt."""
        del capacity  # nothing is allocated
        last, logits = prompt.tokens[:, -1], lambda state: self.log_probs[state].float()
        session = ToySession(last, rows_per_prompt, lambda _, tokens: tokens, logits)
        return session, session.logits()


class HashModel:
    """A model whose next token depends on the whole sequence, at random but repeatably.

    The logits are a hash of the sequence, so a token or a cache on a wrong row shows at once.

    Args:
        vocab: Number of tokens.
        seed: Seed of the hash.
        scale: Standard deviation of the logits; above 3 most distributions are peaked.
        end_ids: Ids that end a hypothesis.

    Example:
        >>> model = HashModel(vocab=5)
        >>> dk.decode(model, [[0, 1]], dk.Greedy(), max_new_tokens=3).tokens.shape
        torch.Size([1, 1, 3])
    """

    def __init__(self, vocab: int, seed: int = 0, scale: float = 2.0, end_ids: tuple[int, ...] = ()) -> None:
        self.vocab, self.seed, self.scale = vocab, seed, scale
        self.vocabulary = Vocabulary(size=vocab, end_ids=end_ids)

    def start(self, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> tuple["ToySession", Logits]:
        """The logits after every prompt, padding ignored."""
        del capacity  # nothing is allocated
        session = ToySession(self._states(prompt)[-1], rows_per_prompt, self._update, self._logits)
        return session, session.logits()

    def start_captured(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["ToySession", Logits]:
        """The same as `start`: a pass is a few operations, which need not be recorded."""
        return self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)

    def _states(self, prompt: Prompt) -> list[Int64[Tensor, " batch"]]:
        """The states before the prompts and after each of their columns."""
        states = [torch.full((len(prompt.tokens),), self.seed)]
        for tokens, mask in zip(prompt.tokens.T, prompt.mask.T, strict=True):
            states.append(torch.where(mask, self._update(states[-1], tokens), states[-1]))
        return states

    @staticmethod
    def _update(state: State, tokens: Int64[Tensor, " rows"]) -> State:
        return rng.mix(rng.mix(state) + tokens)

    def _logits(self, state: State) -> Logits:
        tokens = torch.arange(self.vocab)
        # Two uniform numbers make one of a normal distribution (Box and Muller, 1958).
        seeds, streams = state[:, None].expand(-1, self.vocab).flatten(), tokens.repeat(len(state))
        first, second = (rng.uniform(seeds, streams, torch.tensor(draw)) for draw in (0, 1))
        normal = (-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos()
        return (self.scale * normal).view(-1, self.vocab).float()


class ToySession:
    """A session whose cache is one number per row, from which logits and outputs are computed."""

    def __init__(
        self,
        state: Int64[Tensor, " batch"],
        rows_per_prompt: int,
        update: Callable[[Tensor, Tensor], Tensor],
        logits: Callable[[Tensor], Tensor],
        outputs: Callable[[Tensor], ModelOutputs] | None = None,
    ) -> None:
        self.state, self.batch = state.repeat_interleave(rows_per_prompt), len(state)
        self._update, self._logits, self._outputs = update, logits, outputs
        self.model_outputs = ModelOutputs() if outputs is None else outputs(self.state)

    @property
    def can_evict(self) -> bool:
        """True if prompts can be evicted, which sessions with further outputs do not support."""
        return self._outputs is None

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Evict all other prompts."""
        self.state = self.state.view(self.batch, -1).index_select(0, prompts).flatten()
        self.batch = len(prompts)

    def can_merge(self) -> bool:
        """True if other sessions can be merged."""
        return self.can_evict

    def merge(self, other: "ToySession") -> None:
        """Append the prompts of another session."""
        self.state = torch.cat([self.state, other.state])
        self.batch += other.batch

    def logits(self) -> Logits:
        """The logits of every row's next token."""
        return self._logits(self.state)

    def advance(self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None) -> Logits:
        """The logits after one more token on every row."""
        state = self.state if source_rows is None else self.state[source_rows]
        self.state = self._update(state, tokens)
        if self._outputs is not None:
            self.model_outputs = self._outputs(self.state)
        return self.logits()


class HashModelWithOutputs(HashModel):
    """A `HashModel` whose hidden states, early layers and attention are hashes of the sequence as well.

    States have 4 numbers, layer `n` has the logits of another model, and attention goes to all columns of the
    prompt except its padding.

    Args:
        vocab: Number of tokens; `seed`, `scale` and `end_ids` are those of `HashModel`.

    Example:
        >>> dk.testing.check_decoder(dk.ContrastiveSearch(3), model=HashModelWithOutputs, max_examples=3)
    """

    def start_with_outputs(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: ModelOutputsSpec
    ) -> tuple["ToySession", Logits]:
        """The same as `start`, with a session that has the requested outputs."""
        del capacity  # nothing is allocated
        states = self._states(prompt)
        padding = ~prompt.mask.repeat_interleave(rows_per_prompt, 0)
        layers = _LAYERS[outputs_spec.layers] if isinstance(outputs_spec.layers, str) else outputs_spec.layers

        def outputs(state: State) -> ModelOutputs:
            # Counted from the right, so that padding on the left changes nothing.
            attention = _numbers(state + 99, padding.shape[1]).flip(-1).masked_fill(padding, -torch.inf)
            layer_logits = [self._logits(state + 1 + layer) for layer in layers]
            return ModelOutputs(
                hidden=_numbers(state, _WIDTH) if outputs_spec.hidden else None,
                layer_logits=torch.stack(layer_logits, 1) if layers else None,
                # In double precision: padding changes the order of the sum, which must not show.
                attention=attention.double().softmax(-1).float() if outputs_spec.attention else None,
            )

        session = ToySession(states[-1], rows_per_prompt, self._update, self._logits, outputs)
        if outputs_spec.hidden:
            prompt_hidden = torch.stack([_numbers(state, _WIDTH) for state in states[1:]], 1)
            session.model_outputs = session.model_outputs._replace(prompt_hidden=prompt_hidden)
        return session, session.logits()


def _numbers(state: State, width: int) -> Float32[Tensor, "rows width"]:
    """Numbers around 0 that depend on the state and the column."""
    columns = [rng.uniform(state, torch.full_like(state, column), torch.tensor(7)) for column in range(width)]
    return (torch.stack(columns, 1) - 0.5).float()
