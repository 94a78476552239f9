"""Second models: reverse models, which score the source, and language models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import nn

from decodekit.core.prompt import Prompt
from decodekit.core.result import Decoded
from decodekit.core.validation import CheckedOptions, at_least, set_fields, shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.engine.decode import as_model, vocabulary_of
from decodekit.engine.scoring import score
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.rerank._shared.hypotheses import hashable, read_hypotheses, valid_values


@final
@dataclass(frozen=True)
class Channel(CheckedOptions):
    r"""A reverse model: $\log P(x \mid y)$ of the source $x$ after reading the hypothesis $y$.

    An encoder-decoder encodes the hypothesis and decodes the source, followed by its own end id if the source
    is text. A decoder-only model continues the hypothesis with the source. Equal hypotheses of a prompt are
    scored once.

    Args:
        model: The reverse model.
        sources: Sources to score, one per prompt. Strings: the model reads the hypotheses as text, and may
            have another vocabulary. Lists of ids: the model reads ids, so it must share the vocabulary. None:
            the ids of the prompts, or of the encoder's sources; a BOS in front stays in front.
        prompt: Function from a hypothesis to the text or ids that the reverse model reads, such as an
            instruction around the hypothesis. None: the hypothesis itself; a decoder-only model does not read
            the end id of a list of ids, unless it is the only id.
        batch_size: Hypotheses per forward pass; None: all at once.

    Raises:
        TypeError: If `model` is not a model, or `prompt` cannot be called.
        ValueError: If `batch_size` is not an integer of at least 1.
        DecodekitError: In a run, if the number of `sources` differs from the number of prompts, or texts are
            required and there are none.

    Example:
        >>> model = dk.testing.MarkovModel([[0.9, 0.1], [0.4, 0.6]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> [round(log_prob, 2) for log_prob in Channel(model).log_probs(out)[0]]
        [-0.11, -0.92]

    Source:
        Yee, Dauphin & Auli, 2019, https://arxiv.org/abs/1908.05731.

    Hugging Face:
        None.
    """

    model: Model | nn.Module
    sources: Sequence[str] | Sequence[Sequence[int]] | None = None
    _: KW_ONLY
    prompt: Callable[[Any], Any] | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _check_arguments("Channel", self.model, self.batch_size)
        if not (self.prompt is None or callable(self.prompt)):
            raise TypeError(f"Channel: prompt must be callable or None, got {shown(self.prompt)}.")
        if isinstance(self.sources, str):
            set_fields(self, sources=[self.sources])

    def log_probs(self, out: Decoded) -> list[list[float]]:
        """Return the log-probability of each prompt's source given each of its valid hypotheses, in nats."""
        model = as_model(self.model)
        vocabulary = vocabulary_of(model)
        is_decoder_only = vocabulary.decoder_start_id is None
        sources = self._sources(out, vocabulary)
        hypotheses = self._hypotheses(out, keep_end=not is_decoder_only)
        if self.sources is None and is_decoder_only:
            # The BOS of the prompt begins the text that ends with the prompt.
            starts = [ids[:1] if ids[:1] == [vocabulary.bos_id] else [] for ids in sources]
            sources = [ids[len(start) :] for start, ids in zip(starts, sources, strict=True)]
            pairs = zip(starts, hypotheses, strict=True)
            hypotheses = [[[*start, *ids] for ids in row] for start, row in pairs]
        # Equal hypotheses of the same prompt share a row.
        keys = [[(number, hashable(text)) for text in row] for number, row in enumerate(hypotheses)]
        texts = dict(zip(chain(*keys), chain(*hypotheses), strict=True))
        if not texts:
            return [[] for _ in hypotheses]
        prompts = [text if self.prompt is None else self.prompt(text) for text in texts.values()]
        continuations = [[sources[number]] for number, _ in texts]
        scored = score(model, prompts, continuations, batch_size=self.batch_size)
        log_prob = dict(zip(texts, scored.log_prob[:, 0].tolist(), strict=True))
        return [[log_prob[key] for key in row] for row in keys]

    def _sources(self, out: Decoded, vocabulary: Vocabulary) -> list[Any]:
        if self.sources is None:
            if out.prompt is None:
                raise DecodekitError(
                    "Channel: the sources are unknown, because the result has no prompts. Pass sources=."
                )
            source = out.prompt.source
            if source is None:
                return out.prompt.ids()
            rows = zip(source.tokens.cpu(), source.valid.cpu(), strict=True)
            return [row[valid].tolist() for row, valid in rows]
        sources = list(self.sources)
        if len(sources) != len(out.valid):
            raise DecodekitError(
                f"Channel: there must be one source per prompt, got {len(sources)} sources for "
                f"{len(out.valid)} prompts."
            )
        if vocabulary.decoder_start_id is None or not vocabulary.end_ids:
            return sources
        end = vocabulary.end_ids[0]
        return [
            [*vocabulary.continuation_ids(None, [], source), end] if isinstance(source, str) else source
            for source in sources
        ]

    def _hypotheses(self, out: Decoded, *, keep_end: bool) -> list[list[Any]]:
        """Return every prompt's valid hypotheses, as texts or as ids."""
        as_texts = self.sources is not None and any(isinstance(source, str) for source in self.sources)
        hypotheses = read_hypotheses("Channel", out, ids=not as_texts)
        if as_texts or keep_end:
            return hypotheses
        reasons = valid_values(out, out.finish_reason)
        return [
            [(ids[:-1] or ids) if reason == "end" else ids for ids, reason in zip(*row, strict=True)]
            for row in zip(hypotheses, reasons, strict=True)
        ]


@final
@dataclass(frozen=True)
class Prior(CheckedOptions):
    r"""A language model: $\log P(y)$ of a hypothesis $y$ without its source.

    Args:
        model: The language model; it may be the model of the run.
        prompt: Its prompt: anything that `decode` takes, one for all or one per prompt. None: its BOS.
        texts: True: the model reads the hypotheses as text, and may have another vocabulary; its end id
            follows a hypothesis that has ended. False: the model reads their ids.
        batch_size: Hypotheses per forward pass; None: all at once.

    Raises:
        TypeError: If `model` is not a model.
        ValueError: If `batch_size` is not an integer of at least 1.
        DecodekitError: In a run, if `prompt` holds neither one prompt nor one per prompt of the call, there
            is no BOS, or texts are required and there are none.

    Example:
        >>> model = dk.testing.MarkovModel([[0.9, 0.1], [0.4, 0.6]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> [round(log_prob, 2) for log_prob, in Prior(model, [[1]]).token_log_probs(out)[0]]
        [-0.92, -0.51]

    Source:
        Yee, Dauphin & Auli, 2019, https://arxiv.org/abs/1908.05731.

    Hugging Face:
        None.
    """

    model: Model | nn.Module
    prompt: Any = None
    _: KW_ONLY
    texts: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _check_arguments("Prior", self.model, self.batch_size)

    def log_probs(self, out: Decoded, first: int | None = None) -> list[list[float]]:
        """Return the log-probability of each valid hypothesis, or of its `first` tokens, in nats."""
        return [[math.fsum(values[:first]) for values in row] for row in self.token_log_probs(out)]

    def token_log_probs(self, out: Decoded) -> list[list[list[float]]]:
        """Return the log-probability of every token of every prompt's valid hypotheses, in nats."""
        model = as_model(self.model)
        vocabulary = vocabulary_of(model)
        hypotheses = self._ids(out, vocabulary)
        prompt_of = [number for number, row in enumerate(hypotheses) for _ in row]
        if not prompt_of:
            return [[] for _ in hypotheses]
        prompts = Prompt.of([[]] if self.prompt is None else self.prompt, vocabulary)
        if len(prompts.tokens) not in {1, len(hypotheses)}:
            raise DecodekitError(
                f"Prior: there must be one prompt for all or one for each, got {len(prompts.tokens)} for "
                f"{len(hypotheses)} prompts."
            )
        index = torch.tensor([0] * len(prompt_of) if len(prompts.tokens) == 1 else prompt_of)
        continuations = [[ids] for row in hypotheses for ids in row]
        scored = score(model, prompts.take(index), continuations, batch_size=self.batch_size)
        rows = zip(scored.token_log_probs[:, 0].tolist(), scored.lengths[:, 0].tolist(), strict=True)
        values = iter([log_probs[:length] for log_probs, length in rows])
        return [[next(values) for _ in row] for row in hypotheses]

    def _ids(self, out: Decoded, vocabulary: Vocabulary) -> list[list[list[int]]]:
        """Return every prompt's valid hypotheses as ids of the model's vocabulary."""
        if not self.texts:
            return out.hypotheses()
        end = list(vocabulary.end_ids[:1])
        texts, reasons = read_hypotheses("Prior", out, ids=False), valid_values(out, out.finish_reason)
        return [
            [
                [*vocabulary.continuation_ids(None, [], text), *(end if reason == "end" else [])]
                for text, reason in zip(*row, strict=True)
            ]
            for row in zip(texts, reasons, strict=True)
        ]


def _check_arguments(who: str, model: object, batch_size: int | None) -> None:
    """Raise unless `model` is a model, and `batch_size` a number of hypotheses or None."""
    if not isinstance(model, Model | nn.Module) or isinstance(model, type):
        raise TypeError(f"{who}: model must be a Model or a transformers model, got {shown(model)}.")
    if batch_size is not None:
        at_least(1).check(who, "batch_size", batch_size)
