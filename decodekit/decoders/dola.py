"""Decoding by contrasting layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import FRACTION, check_fields, is_count, plain, set_fields, shown
from decodekit.decoders.base import AdjustingDecoder, Decoder, Selection
from decodekit.decoders.greedy import Greedy
from decodekit.models.protocols import ModelOutputs, ModelOutputsSpec
from decodekit.processors.base import Scores


class DoLaState(NamedTuple):
    """The inner decoder's state, and the logits of early layers and of the last; None between steps."""

    inner: Any
    layer_logits: Float32[Tensor, "rows layers vocab"] | None = None
    model_scores: Float32[Tensor, "rows vocab"] | None = None

    @property
    def history(self) -> History:
        """Tokens of every row."""
        history: History = self.inner.history
        return history

    @property
    def done(self) -> Bool[Tensor, ""]:
        """True if the inner decoder is done."""
        done: Bool[Tensor, ""] = self.inner.done
        return done


@final
@dataclass(frozen=True)
class DoLa(AdjustingDecoder[DoLaState, Any]):
    r"""Prefers tokens that the last layer finds more likely than an early layer does, under any decoder.

    Scores are $\log P(v) - \log P_j(v)$ for tokens with $P(v) \ge r \cdot \max_u P(u)$, and minus infinity
    for all other tokens, where $P_j$ is the distribution of the head over the states of layer $j$. For every
    row and step, $j$ is the given layer whose distribution is furthest from the last layer's distribution.
    The processors run afterwards. The reported log-probabilities are the model's own.

    Args:
        inner: The decoder that chooses by these scores: `Greedy()`, `Sample(...)` or any other `Decoder`. For
            a beam search the scores are normalized.
        layers: The early layers: their numbers, 0 for the embeddings; or `"low"` or `"high"`: every second
            layer of the lower or upper half, as in `ModelOutputsSpec`. The authors use high layers for short
            answers, and low ones for long answers.
        relative_top: The fraction $r$ of the largest probability, in [0, 1]; 0 keeps every token. Usual: 0.1.

    Raises:
        TypeError: If `inner` is not a `Decoder`.
        ValueError: If the layers are neither numbers nor `"low"` nor `"high"`, or `relative_top` is outside
            [0, 1].
        DecodekitError: In a run, if the model does not return its layers, or has fewer.

    Example:
        >>> decoder = dk.DoLa(dk.Sample(2, seeds=[7]), layers="high")
        >>> dk.decode(dk.load(), "Once upon a", decoder, dk.TopP(0.9), max_new_tokens=8).tokens.shape
        torch.Size([1, 2, 8])

    Source:
        Chuang et al., 2024, DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language
        Models, https://arxiv.org/abs/2309.03883. The distance is that of the authors' code:
        $\frac12 [KL(M \| P) + KL(M \| P_j)]$ with $M = \frac12 (P + P_j)$, where the paper has the
        Jensen-Shannon divergence.

    Hugging Face:
        `generate(dola_layers=layers)` of version 4.55, the same tokens for each prompt alone. In a batch
        Hugging Face chooses one layer for all prompts.
    """

    inner: Decoder[Any] = field(default_factory=Greedy)
    layers: Literal["low", "high"] | Sequence[int] = field(default="low", kw_only=True)
    relative_top: float = field(default=0.1, kw_only=True)

    batch_independent = True

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Decoder):
            raise TypeError(f"DoLa: inner must be a Decoder, such as Greedy(), got {shown(self.inner)}.")
        layers = plain(self.layers)
        if layers not in ("low", "high"):
            numbers = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else ()
            if not numbers or not all(is_count(plain(layer), 0) for layer in numbers):
                raise ValueError(
                    "DoLa: layers must be 'low', 'high' or integers of at least 0, at least one, "
                    f"got {shown(self.layers)}."
                )
            set_fields(self, layers=tuple(int(layer) for layer in numbers))
        check_fields(self, relative_top=FRACTION)
        set_fields(self, delay=self.inner.delay)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.inner.rows_per_prompt

    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        layers: Any = self.layers
        return ModelOutputsSpec(layers=layers) | self.inner.outputs_spec

    @override
    def init(self, history: History, limits: Limits) -> DoLaState:
        return DoLaState(self.inner.init(history, limits))

    @override
    def on_model_outputs(self, model_outputs: ModelOutputs, state: DoLaState) -> DoLaState:
        inner = state.inner
        if self.inner.outputs_spec:
            inner = self.inner.on_model_outputs(model_outputs, inner)
        return DoLaState(inner, model_outputs.layer_logits)

    @override
    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        return self.inner.prepare(logits)

    def adjust(self, scores: Scores, state: DoLaState) -> Scores:
        """The difference of the log-probabilities of the last layer and of the furthest early layer."""
        if state.layer_logits is None:
            return self._adjust_inner(scores, state)
        last, early = scores.log_softmax(-1), state.layer_logits.log_softmax(-1)
        furthest = _distance(last[:, None], early).argmax(-1)
        chosen = early.gather(1, furthest[:, None, None].expand_as(early[:, :1]))[:, 0]
        floor = math.log(self.relative_top) if self.relative_top > 0 else -math.inf
        unlikely = last < last.amax(-1, keepdim=True) + floor
        difference = (last - chosen).masked_fill(unlikely, -torch.inf)
        return self._adjust_inner(self.inner.prepare(difference), state)

    def _adjust_inner(self, scores: Scores, state: DoLaState) -> Scores:
        if isinstance(self.inner, AdjustingDecoder):
            return self.inner.adjust(scores, state.inner._replace(model_scores=state.model_scores))
        return scores

    @override
    def step(self, scores: Float32[Tensor, "rows vocab"], state: DoLaState) -> tuple[DoLaState, Selection]:
        inner = state.inner._replace(model_scores=state.model_scores)
        inner, selection = self.inner.step(scores, inner)
        return DoLaState(inner), selection

    @override
    def stable_prefix(self, state: DoLaState) -> list[list[list[int]]]:
        return self.inner.stable_prefix(state.inner)

    @override
    def finished(self, state: DoLaState) -> Bool[Tensor, " batch"] | None:
        return self.inner.finished(state.inner)

    @override
    def finalize(self, state: DoLaState) -> Decoded:
        return self.inner.finalize(state.inner)


def _distance(
    last: Float32[Tensor, "rows 1 vocab"], early: Float32[Tensor, "rows layers vocab"]
) -> Float32[Tensor, "rows layers"]:
    """The distance of the distribution of each layer from the last layer's distribution, given log-probs."""
    mean = (last.exp() + early.exp()) / 2
    log_mean = mean.log()
    surprise = mean * (log_mean - last) + mean * (log_mean - early)
    return surprise.masked_fill(mean == 0, 0.0).sum(-1) / 2
