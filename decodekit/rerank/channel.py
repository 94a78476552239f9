"""A model that goes the other way: how likely the source is, given a hypothesis."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

from torch import nn

from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.engine.decode import as_model
from decodekit.engine.scoring import score
from decodekit.errors import DecodekitError
from decodekit.models.protocols import DescribedModel, Model
from decodekit.rerank._shared.text_inputs import (
    check_batch_size,
    check_is_model,
    read_hypotheses,
    read_reasons,
)


@final
@dataclass(frozen=True)
class Channel:
    r"""A reverse model: $\log P(x \mid y)$ of the source $x$ after reading the hypothesis $y$.

    An encoder-decoder reads the hypothesis and says the source, its own end id included where that is text; a
    decoder-only model goes on with the source where the hypothesis ends. Different hypotheses of a prompt are
    scored once.

    Args:
        model: The reverse model.
        sources: What it must say, for every prompt. Strings: it is given the hypotheses as text, and may
            have a vocabulary of its own. Lists of ids: it is given ids, so it must share the vocabulary.
            None: the ids of the prompts, or of what the encoder read; a BOS in front stays in front.
        prompt: From a hypothesis to what the reverse model reads, such as an instruction around it. None: the
            hypothesis itself; of ids, a decoder-only model is not given the one that ended the text, unless
            there is no other.
        batch_size: Hypotheses a forward pass; None: all at once.

    Raises:
        TypeError: If `model` is no model, or `prompt` cannot be called.
        ValueError: If `batch_size` is not an integer of at least 1.
        DecodekitError: In a run, if there are not as many `sources` as prompts, or texts are wanted and there
            are none.

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
        check_is_model("Channel", self.model)
        check_batch_size("Channel", self.batch_size)
        if not (self.prompt is None or callable(self.prompt)):
            raise TypeError(f"Channel: prompt must be callable or None, got {self.prompt!r:.80}.")
        if isinstance(self.sources, str):
            object.__setattr__(self, "sources", [self.sources])  # a frozen field

    def log_probs(self, out: Decoded) -> list[list[float]]:
        """How likely the source is in nats, for every prompt by each of its valid hypotheses."""
        model = as_model(self.model)
        vocabulary = model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()
        sources = self._sources(out, vocabulary)
        read = self._read(out, keep_end=vocabulary.decoder_start_id is not None)
        if self.sources is None and vocabulary.decoder_start_id is None:
            # What begins the prompt begins the text that ends with it.
            begins = [ids[:1] if ids[:1] == [vocabulary.bos_id] else [] for ids in sources]
            sources = [ids[len(begin) :] for begin, ids in zip(begins, sources, strict=True)]
            read = [[[*begin, *one] for one in own] for begin, own in zip(begins, read, strict=True)]
        # The same hypothesis of the same prompt is one row.
        rows: dict[tuple[int, str | tuple[int, ...]], int] = {}
        prompts: list[Any] = []
        for number, own in enumerate(read):
            for one in own:
                key = number, one if isinstance(one, str) else tuple(one)
                if key not in rows:
                    rows[key] = len(rows)
                    prompts.append(one if self.prompt is None else self.prompt(one))
        said = [sources[number] for number, _ in rows]
        if not rows:
            return [[] for _ in read]
        found = (
            score(model, prompts, [[one] for one in said], batch_size=self.batch_size).log_prob[:, 0].tolist()
        )
        return [
            [found[rows[number, one if isinstance(one, str) else tuple(one)]] for one in own]
            for number, own in enumerate(read)
        ]

    def _sources(self, out: Decoded, vocabulary: Vocabulary) -> list[Any]:
        if self.sources is None:
            return _read_by(out)
        sources = list(self.sources)
        if len(sources) != len(out.valid):
            raise DecodekitError(
                f"Channel: there must be one source a prompt, got {len(sources)} sources for "
                f"{len(out.valid)} prompts."
            )
        if vocabulary.decoder_start_id is None or not vocabulary.end_ids:
            return sources
        end = vocabulary.end_ids[0]
        return [
            [*vocabulary.continuation_ids(None, [], one), end] if isinstance(one, str) else one
            for one in sources
        ]

    def _read(self, out: Decoded, *, keep_end: bool) -> list[list[Any]]:
        """What the model reads: the hypotheses."""
        texts = self.sources is not None and any(isinstance(one, str) for one in self.sources)
        read = read_hypotheses("Channel", out, ids=not texts)
        if texts or keep_end:
            return read
        return [
            [
                (one[:-1] or one) if reason == "end" else one
                for one, reason in zip(own, finish_code, strict=True)
            ]
            for own, finish_code in zip(read, read_reasons(out), strict=True)
        ]


def as_channel(channel: Channel | Model | nn.Module) -> Channel:
    """The channel itself, or a model as one."""
    return channel if isinstance(channel, Channel) else Channel(channel)


def _read_by(out: Decoded) -> list[list[int]]:
    """The ids that the hypotheses are an answer to."""
    if out.prompt is None:
        raise DecodekitError("Channel: sources are not known, since the result has no prompts. Pass sources.")
    if out.prompt.source is None:
        return out.prompt.ids()
    source = out.prompt.source
    return [row[valid].tolist() for row, valid in zip(source.tokens.cpu(), source.valid.cpu(), strict=True)]
