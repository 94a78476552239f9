"""A toy model that shows more than logits, for tests of what looks at it."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk


class ShowingModel(dk.testing.HashModel):
    """A `HashModel` whose states, early layers and attention are hashes of the text as well.

    Its hidden states have 4 numbers, layer `n`'s logits are those of another text's model, and attention
    goes to all columns of the prompt, none to its padding.
    """

    def start_revealing(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int, reveal: dk.Reveal
    ) -> tuple["ShowingSession", Float32[Tensor, "rows vocab"]]:
        session, logits = self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        return ShowingSession(self, session, prompt, rows_per_prompt, reveal), logits


class ShowingSession:
    def __init__(
        self,
        model: ShowingModel,
        inner: dk.Session,
        prompt: dk.Prompt,
        rows_per_prompt: int,
        reveal: dk.Reveal,
    ) -> None:
        self._model, self._inner, self._reveal = model, inner, reveal
        self._mask = prompt.mask.repeat_interleave(rows_per_prompt, 0)
        states = []  # of the model after every column of the prompt
        state = torch.full((len(prompt.tokens),), model.seed)
        for tokens, mask in zip(prompt.tokens.T, prompt.mask.T, strict=True):
            state = torch.where(mask, model._update(state, tokens), state)
            states.append(state)
        self.revealed = self._show()._replace(
            prompt_hidden=torch.stack([self._hashed(state, 4) for state in states], 1)
            if reveal.hidden
            else None
        )

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        logits = self._inner.advance(tokens, source_rows)
        self.revealed = self._show()
        return logits

    def _show(self) -> dk.Revealed:
        state: Tensor = self._inner._state  # type: ignore[attr-defined]
        layers = [self._model._logits(state + 1 + layer) for layer in self._reveal.layers]
        # Columns are counted from the right, so that padding on the left changes nothing.
        attention = (
            self._hashed(state + 99, self._mask.shape[1]).flip(-1).masked_fill(~self._mask, -torch.inf)
        )
        return dk.Revealed(
            hidden=self._hashed(state, 4) if self._reveal.hidden else None,
            layer_logits=torch.stack(layers, 1) if layers else None,
            attention=attention.softmax(-1) if self._reveal.attention else None,
        )

    def _hashed(self, state: Int64[Tensor, " rows"], width: int) -> Float32[Tensor, "rows width"]:
        """Numbers around 0 that depend on the state, one column after the other."""
        columns = [
            dk.rng.uniform(state, torch.full_like(state, column), torch.tensor(7)) for column in range(width)
        ]
        return (torch.stack(columns, 1) - 0.5).float()
