"""Mirostat, version 2."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE
from decodekit.processors._shared.mirostat import Mirostat, MirostatMemory
from decodekit.processors._shared.parameters import set_per_prompt
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class MirostatV2(Mirostat):
    r"""Bans tokens of more than $\mu$ bits of surprise, and adapts $\mu$ so that emitted ones have `tau`.

    Keeps $\{v : -\log_2 P(v) \le \mu\}$, at least the likeliest. After each token x,
    $\mu \leftarrow \mu - \eta\,(-\log_2 P(x) - \tau)$, from $\mu = 2\tau$. P is the distribution before
    mirostat bans anything. Every row has its own $\mu$. Does not change the argmax.

    Not capturable: the memory has one number per token, and the vocabulary size is known only at the first
    step.

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
        decodekit measures it before, as in the authors' program of version 1.
    """

    def __post_init__(self) -> None:
        set_per_prompt(self, tau=POSITIVE, eta=POSITIVE)

    @override
    def banned(self, history: History, scores: Scores, memory: MirostatMemory) -> Bool[Tensor, "rows vocab"]:
        return (memory.surprise > memory.mu) & (scores < scores.amax(-1, keepdim=True))
