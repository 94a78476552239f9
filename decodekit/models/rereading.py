"""Verifying sessions for every model, by restarts for models without `start_verifying`."""

from dataclasses import replace

import torch
from jaxtyping import Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.prompt import Prompt
from decodekit.models.protocols import Ids, Logits, Model, PerRow, VerifyingModel, VerifyingSession


def start_verifying(
    model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int
) -> tuple[VerifyingSession, Logits]:
    """`VerifyingModel.start_verifying`; a model without it reads the whole text again in every pass."""
    if isinstance(model, VerifyingModel):
        return model.start_verifying(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
    _, logits = model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
    rows = torch.arange(len(prompt.tokens)).repeat_interleave(rows_per_prompt)
    return RereadingSession(model, prompt.take(rows)), logits


class RereadingSession(VerifyingSession):
    """A session that starts its model again in every pass, with one sequence per token to verify."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt
        self._sequences = prompt.ids()
        self._pending = [0] * len(self._sequences)  # tokens since the last `keep`

    @override
    def extend(self, tokens: Ids, counts: PerRow) -> Float32[Tensor, "rows columns vocab"]:
        sequences, rows, columns = [], [], []
        for row, (new, count) in enumerate(zip(tokens.tolist(), counts.tolist(), strict=True)):
            for column in range(count):
                self._sequences[row] = [*self._sequences[row], new[column]]
                sequences.append(self._sequences[row])
                rows.append(row)
                columns.append(column)
            self._pending[row] += count
        padded = Prompt.from_ids(sequences).to(self._prompt.tokens.device)
        prompt = replace(self._prompt.take(torch.tensor(rows)), tokens=padded.tokens, mask=padded.mask)
        _, logits = self._model.start(prompt, rows_per_prompt=1, capacity=padded.tokens.shape[1] + 1)
        result = logits.new_zeros((*tokens.shape, logits.shape[-1]))
        result[rows, columns] = logits
        return result

    @override
    def keep(self, counts: PerRow) -> None:
        for row, count in enumerate(counts.tolist()):
            sequence = self._sequences[row]
            self._sequences[row] = sequence[: len(sequence) - self._pending[row] + count]
        self._pending = [0] * len(self._pending)
