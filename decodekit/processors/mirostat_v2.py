"""Mirostat, version 2."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE
from decodekit.processors._shared import mirostat
from decodekit.processors._shared.mirostat import MirostatMemory
from decodekit.processors._shared.parameters import PerPrompt, check_per_prompt, set_per_prompt
from decodekit.processors.base import LogitsProcessor, Scores


@final
@dataclass(frozen=True)
class MirostatV2(LogitsProcessor):
    r"""Bans tokens of more than $\mu$ bits of surprise, and adapts $\mu$ so that emitted ones have `tau`.

    Keeps $\{v : -\log_2 P(v) \le \mu\}$, at least the likeliest. After each token x,
    $\mu \leftarrow \mu - \eta\,(-\log_2 P(x) - \tau)$, from $\mu = 2\tau$. P is the distribution before
    mirostat bans anything. Every row has its own $\mu$. Does not change the argmax.

    Not capturable: the memory has one number per token of the vocabulary, whose size is known only at the
    first step.

    Args:
        tau: The target surprise in bits, above 0; one number, or one per prompt. Usual values: 3-5.
        eta: Learning rate, above 0; one number, or one per prompt. Usual value: 0.1.

    Raises:
        ValueError: If one of them is not a finite number above 0.

    Example:
        >>> sample, mirostat = dk.Sample(seeds=[0]), dk.MirostatV2(3.0)
        >>> dk.decode(dk.load(), "Once upon a time", sample, mirostat, max_new_tokens=5).lengths
        tensor([[5]])

    Source:
        Basu et al., 2021, https://arxiv.org/abs/2007.14966, with the truncation by surprise of
        https://github.com/ggml-org/llama.cpp, where it is called mirostat 2.0.

    Hugging Face:
        None. llama.cpp and text-generation-webui measure the surprise of a token after the truncation;
        ours is before it, as in the authors' program of version 1.
    """

    tau: PerPrompt
    eta: PerPrompt = 0.1

    capturable = False
    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, tau=POSITIVE, eta=POSITIVE)

    @override
    def init(self, history: History) -> MirostatMemory:
        check_per_prompt(self, history)
        return mirostat.start(self.tau, history)

    @override
    def apply(
        self, history: History, scores: Scores, memory: MirostatMemory
    ) -> tuple[Scores, MirostatMemory]:
        mu = mirostat.learn(memory, history, self.tau, self.eta)
        surprise = mirostat.surprises(scores)
        banned = (surprise > mu) & (scores < scores.amax(-1, keepdim=True))
        return scores.masked_fill(banned, -torch.inf), MirostatMemory(mu, surprise)
