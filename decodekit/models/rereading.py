"""Several positions a row in one pass, and back: for models that can, and for all others."""

from dataclasses import replace

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.models.protocols import Model, VerifyingModel, VerifyingSession


def start_verifying(
    model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int
) -> tuple[VerifyingSession, Float32[Tensor, "rows vocab"]]:
    """A run whose rows may read different numbers of tokens, and take them back.

    Args:
        model: One that has `start_verifying`, or any other: then every pass reads the whole texts again.
        prompt: The prompts, left-padded.
        rows_per_prompt: Samples of each prompt.
        capacity: Columns that a prompt and what counts of its continuation take at most.
    """
    if isinstance(model, VerifyingModel):
        return model.start_verifying(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
    _, logits = model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
    rows = torch.arange(len(prompt.tokens)).repeat_interleave(rows_per_prompt)
    return ReadingAnew(model, prompt.take(rows)), logits


class ReadingAnew:
    """A run of a model that can only begin: every token asked about is the end of a text of its own.

    Args:
        model: The model.
        prompt: One prompt a row.
    """

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt
        self._texts = prompt.ids()
        self._unsure = [0] * len(self._texts)  # tokens since the last `keep`

    def extend(
        self, tokens: Int64[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows columns vocab"]:
        """The logits after each of several more tokens on every row: one text for each, in one batch."""
        texts, rows, columns = [], [], []
        for row, (new, count) in enumerate(zip(tokens.tolist(), counts.tolist(), strict=True)):
            for column in range(count):
                self._texts[row] = [*self._texts[row], new[column]]
                texts.append(self._texts[row])
                rows.append(row)
                columns.append(column)
            self._unsure[row] += count
        padded = Prompt.from_ids(texts).to(self._prompt.tokens.device)
        prompt = replace(self._prompt.take(torch.tensor(rows)), tokens=padded.tokens, mask=padded.mask)
        _, logits = self._model.start(prompt, rows_per_prompt=1, capacity=padded.tokens.shape[1] + 1)
        result = logits.new_zeros((*tokens.shape, logits.shape[-1]))
        result[rows, columns] = logits
        return result

    def keep(self, counts: Int64[Tensor, " rows"]) -> None:
        """Takes back what each row has read since the last `keep`, except its first `counts` tokens."""
        for row, count in enumerate(counts.tolist()):
            self._texts[row] = self._texts[row][: len(self._texts[row]) - self._unsure[row] + count]
        self._unsure = [0] * len(self._texts)
