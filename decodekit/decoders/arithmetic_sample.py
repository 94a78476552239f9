"""Arithmetic sampling."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, set_fields
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.prompt_seeds import own_seeds, read_seeds
from decodekit.decoders.rows import RowState
from decodekit.processors.base import Scores

GRID = 2.0**-52  # no code is closer to 1 than this: the spacing of double precision just below 1, twice
SHIFT = -1  # the stream of the lattice's shift; those of the rows count from 0


class ArithmeticMemory(NamedTuple):
    """The memory of arithmetic sampling, in the `memory` of a `RowState`."""

    codes: Float64[Tensor, " rows"]  # position of each row's code inside the interval of its hypothesis
    widths: Float64[Tensor, " rows"]  # width of that interval
    seeds: Int64[Tensor, " rows"]  # the seed of each row's prompt
    streams: Int64[Tensor, " rows"]  # the number of each row's stream of draws


@final
@dataclass(frozen=True)
class ArithmeticSample(Decoder[RowState]):
    r"""Draws samples that are spread evenly over the distribution, each of them unbiased.

    Every sequence owns an interval of [0, 1) as long as it is probable, and the samples of a prompt are the
    sequences at the codes $c_i = (i / N + u) \bmod 1$, with one $u$ uniform in [0, 1). At every step a row
    emits the token $v$ with the interval of the cumulative distribution $F$ (in the order of the vocabulary)
    that contains its code, and goes on with its position in there: $c \leftarrow (c - F(v - 1)) / P(v)$.

    Each code is uniform, so each sample follows the distribution that the processors leave, and averages over
    samples are unbiased. They vary less than those of `Sample`, since codes are 1 / N apart: of sequences
    with a common prefix of probability p, $\lfloor N p \rfloor$ or $\lceil N p \rceil$ are drawn. Rows are
    computed independently.

    Once a sequence is less probable than $1 / N$, its interval holds no other code, and the position of the
    code no longer matters for other samples: from there on a new number, drawn for the row and the step,
    takes its place. So rounding errors are never amplified by more than $N$; the digits of a code that is
    followed to the end would soon be those of the rounding.

    Args:
        num_samples: Samples of each prompt, at least 1. The prompt is computed once.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then the samples of a prompt do not depend on
            the rest of the batch.

    Raises:
        ValueError: If `num_samples` is not an integer of at least 1, if both `generator` and `seeds` are
            given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds as prompts.

    Example:
        >>> coin = dk.testing.MarkovModel([[0.5, 0.5], [0.5, 0.5]])
        >>> out = dk.decode(coin, [[0]], ArithmeticSample(4, seeds=[1]), max_new_tokens=2)
        >>> sorted(out.hypotheses()[0])
        [[0, 0], [0, 1], [1, 0], [1, 1]]

    Source:
        Vilnis et al., 2023, https://arxiv.org/abs/2210.15458. There codes are 1 / (N + 1) apart, which
        leaves a gap of twice that, and are followed to the end, in single precision.

    Hugging Face:
        None.
    """

    num_samples: int = 1
    _: KW_ONLY
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, num_samples=at_least(1))
        read_seeds(self)
        set_fields(self, num_samples=int(self.num_samples))

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.num_samples

    def init(self, history: History, limits: Limits) -> RowState:
        """The lattice of codes of every prompt, shifted by a random number."""
        device, batch = history.tokens.device, len(history.tokens) // self.num_samples
        seeds = own_seeds(self, history).repeat_interleave(self.num_samples)
        streams = torch.arange(self.num_samples, device=device).repeat(batch)
        shifts = rng.uniform(seeds, torch.full_like(streams, SHIFT), torch.zeros_like(streams[0]))
        codes = (streams.double() / self.num_samples + shifts).remainder(1).clamp(max=1 - GRID)
        return RowState.start(
            history, limits, ArithmeticMemory(codes, torch.ones_like(codes), seeds, streams)
        )

    def step(self, scores: Scores, state: RowState) -> tuple[RowState, Selection]:
        """One digit of the code of every row."""
        before: ArithmeticMemory = state.memory
        tokens, codes, widths = look_up(scores.double().softmax(-1), before.codes)
        widths = before.widths * widths
        fresh = rng.uniform(before.seeds, before.streams, state.step)
        after, selection = state.emit(tokens, scores)
        codes = follow(codes, widths * self.num_samples, fresh)
        return after._replace(memory=before._replace(codes=codes, widths=widths)), selection

    @override
    def stable_prefix(self, state: RowState) -> list[list[list[int]]]:
        return state.stable_prefix(self.num_samples)

    @override
    def finished(self, state: RowState) -> Bool[Tensor, " batch"]:
        return state.finished

    def finalize(self, state: RowState) -> Decoded:
        """`num_samples` hypotheses per prompt, in the order of their codes on the circle."""
        return state.decoded(self.num_samples)


def look_up(
    probs: Float64[Tensor, "rows vocab"], codes: Float64[Tensor, " rows"]
) -> tuple[Int64[Tensor, " rows"], Float64[Tensor, " rows"], Float64[Tensor, " rows"]]:
    """The token with the interval that contains each code in [0, 1), the position in it, and its width.

    Example:
        >>> probs, codes = torch.tensor([[0.5, 0.0, 0.5]]).double(), torch.tensor([0.75]).double()
        >>> [part.item() for part in look_up(probs, codes)]
        [2, 0.5, 0.5]
    """
    # Tokens of probability 0 end at 0, below all codes, even if a parallel sum is off by a digit.
    ends = torch.where(probs > 0, probs.cumsum(-1), 0.0)
    # A code is at most 1 - 2**-52, so it stays below the total.
    codes = codes * ends.amax(-1)
    tokens = (ends > codes[:, None]).long().argmax(-1)  # the first one
    ends, widths = (part.gather(1, tokens[:, None])[:, 0] for part in (ends, probs))
    return tokens, (codes - (ends - widths)) / widths, widths


def follow(
    codes: Float64[Tensor, " rows"], share: Float64[Tensor, " rows"], fresh: Float[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """The codes, or fresh ones in [0, 1) where no other sample can have the same prefix.

    `share` is the mean number of codes of the lattice in the interval of each sequence. The condition depends
    on the sequence alone and not on the other samples: only then is a new code unbiased.
    """
    return torch.where(share < 1, fresh.double(), codes).clamp(min=0.0, max=1 - GRID)
