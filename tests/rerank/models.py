"""Models for the tests: one that records its prompts, and a translator of a few words."""

from functools import cache

from jaxtyping import Float32
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import decodekit as dk
from tests.equivalence.families import ENDS, PAD, build


class Remembering:
    """A toy model that records the prompts it has read."""

    def __init__(self, vocab: int = 5, seed: int = 0, vocabulary: dk.Vocabulary | None = None) -> None:
        self._model = dk.testing.HashModel(vocab, seed)
        self.vocabulary = vocabulary or self._model.vocabulary
        self.read: list[list[int]] = []

    def start(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[dk.Session, Float32[Tensor, "rows vocab"]]:
        self.read += prompt.ids()
        return self._model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)


@cache
def translator() -> dk.HFModel:
    """A small T5 that knows words from w0 to w59, and its end."""
    special = {PAD: "<pad>", min(ENDS): "</s>"}
    known = {special.get(number, f"w{number}"): number for number in range(60)}
    tokenizer = Tokenizer(models.WordLevel(known, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "w0", "eos_token": "</s>", "pad_token": "<pad>"}
    return dk.HFModel(build("t5"), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))
