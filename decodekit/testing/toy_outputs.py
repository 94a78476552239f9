"""A toy model that shows more than logits."""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.prompt import Prompt
from decodekit.models.protocols import ModelOutputs, ModelOutputsSpec
from decodekit.testing.toy_models import HashModel

_WIDTH = 4
_LAYERS = {"low": (0, 2), "high": (4, 6)}


class HashModelWithOutputs(HashModel):
    """A `HashModel` whose hidden states, early layers and attention are hashes of the text as well.

    States have 4 numbers, the logits of layer `n` are those of another model, and attention goes to all
    columns of the prompt and none to its padding.

    Args:
        vocab: Number of tokens.
        seed: Picks the model.
        scale: Standard deviation of the logits.
        end_ids: Ids that end a text.

    Example:
        >>> dk.testing.check_decoder(dk.ContrastiveSearch(3), model=HashModelWithOutputs, max_examples=3)
    """

    def start_with_outputs(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: ModelOutputsSpec
    ) -> tuple["ToySessionWithOutputs", Float32[Tensor, "rows vocab"]]:
        """The same as `start`, with a session that shows what is asked for."""
        del capacity  # nothing is allocated
        states = [torch.full((len(prompt.tokens),), self.seed)]  # before the prompt, and after every column
        for tokens, mask in zip(prompt.tokens.T, prompt.mask.T, strict=True):
            states.append(torch.where(mask, self._update(states[-1], tokens), states[-1]))
        padding = ~prompt.mask.repeat_interleave(rows_per_prompt, 0)
        layers = _LAYERS[outputs_spec.layers] if isinstance(outputs_spec.layers, str) else outputs_spec.layers

        def show(state: Int64[Tensor, " rows"]) -> tuple[Float32[Tensor, "rows vocab"], ModelOutputs]:
            # Counted from the right, so that padding on the left changes nothing.
            attention = _numbers(state + 99, padding.shape[1]).flip(-1).masked_fill(padding, -torch.inf)
            return self._logits(state), ModelOutputs(
                hidden=_numbers(state, _WIDTH) if outputs_spec.hidden else None,
                layer_logits=torch.stack([self._logits(state + 1 + layer) for layer in layers], 1)
                if layers
                else None,
                # In double precision: padding moves the terms of the sum, and must not show.
                attention=attention.double().softmax(-1).float() if outputs_spec.attention else None,
            )

        session = ToySessionWithOutputs(states[-1].repeat_interleave(rows_per_prompt), self._update, show)
        if outputs_spec.hidden:
            prompt_hidden = torch.stack([_numbers(state, _WIDTH) for state in states[1:]], 1)
            session.model_outputs = session.model_outputs._replace(prompt_hidden=prompt_hidden)
        return session, session.logits


class ToySessionWithOutputs:
    """A session whose whole cache is one number a row, from which everything that it shows is made."""

    def __init__(
        self,
        state: Int64[Tensor, " rows"],
        update: Callable[[Tensor, Tensor], Tensor],
        show: Callable[[Tensor], tuple[Tensor, ModelOutputs]],
    ) -> None:
        self._state, self._update, self._show = state, update, show
        self.logits, self.model_outputs = show(state)

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        state = self._state if source_rows is None else self._state[source_rows]
        self._state = self._update(state, tokens)
        self.logits, self.model_outputs = self._show(self._state)
        return self.logits


def _numbers(state: Int64[Tensor, " rows"], width: int) -> Float32[Tensor, "rows width"]:
    """Numbers around 0 that depend on the state, one column after the other."""
    columns = [rng.uniform(state, torch.full_like(state, column), torch.tensor(7)) for column in range(width)]
    return (torch.stack(columns, 1) - 0.5).float()
