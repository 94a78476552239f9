"""Parts of the tests of processors with a second model."""

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

import decodekit as dk
from decodekit.testing import MarkovModel


def after(
    processor: dk.LogitsProcessor, probs: Sequence[float], prompts: Sequence[Sequence[int]] = ((0,),)
) -> Tensor:
    """The processed scores of the first step, where the run's model gives `probs` for every prompt."""
    history = dk.Prompt.from_ids(prompts).history(max(map(len, prompts)) + 3, 1)
    scores = torch.tensor([list(probs)] * len(prompts)).log()
    return processor.apply(history, scores, processor.init(history))[0]


def always(*probs: float) -> MarkovModel:
    """A model with the same distribution after all tokens."""
    return MarkovModel([list(probs)] * len(probs))


# Nine tokens, of which five are impossible after any one of them.
SPARSE = MarkovModel([[0.25 * ((last + token) % 9 < 4) for token in range(9)] for last in range(9)])


def bare() -> transformers.PreTrainedModel:
    """A transformers model without a wrapper."""
    config = transformers.GPT2Config(vocab_size=5, n_embd=4, n_layer=1, n_head=1, n_positions=8)
    return transformers.GPT2LMHeadModel(config)
