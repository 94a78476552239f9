"""A GenerationConfig as a decoder, its processors and its stopping criteria."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from decodekit.compat.from_hf import NOT_KEPT, FromHF, HFCriterion
from decodekit.compat.inputs import plain_config, read_end_ids, wrap
from decodekit.compat.processors import Named, Setting, last, penalties_and_constraints, warpers
from decodekit.compat.refusals import refuse_options
from decodekit.core.stopping_criterion import StoppingCriterion
from decodekit.decoders.base import Decoder
from decodekit.decoders.beam.expansion import BestExpansion, SampledExpansion
from decodekit.decoders.beam.search import BeamSearch
from decodekit.decoders.beam.stop_rules import Heuristic, Proved, StopRule, WhenFull
from decodekit.decoders.greedy import Greedy
from decodekit.decoders.sample import Sample
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.processors.base import Chain
from decodekit.scorers.length_penalty import LengthPenalty
from decodekit.stopping.max_time import MaxTime

_TOP_K = 50  # generate's default under sampling
_AT_ONCE = 1e-9  # seconds
_STOP_RULES: dict[bool | str, StopRule] = {True: WhenFull(), False: Heuristic(), "never": Proved()}


@dataclass(frozen=True)
class Recipe:
    """A `GenerationConfig` as decodekit's parts; prints as a list, in order.

    Attributes:
        decoder: The algorithm.
        processor: Everything that changes the scores, in the order `generate` applies it.
        stop: Conditions that finish a hypothesis besides end ids and the limit.
        max_new_tokens: Maximum number of new tokens.
        end_ids: Ids that end a hypothesis; None: the model's own.
        pad_id: The id that fills the end; None is the model's own.

    Example:
        >>> config = transformers.GenerationConfig(num_beams=4, no_repeat_ngram_size=2, max_new_tokens=9)
        >>> recipe = dk.compat.hf.from_generation_config(config)
        >>> recipe.processor
        Chain(NoRepeatNGram(n=2))
        >>> dk.decode(dk.load(), "Once", **recipe.arguments()).lengths
        tensor([[9]])
    """

    decoder: Decoder[Any]
    processor: Chain
    stop: tuple[StoppingCriterion, ...]
    max_new_tokens: int
    end_ids: tuple[int, ...] | None = None
    pad_id: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of `decode` besides the model and the prompts."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        processors = self.processor.processors
        lines = [f"decoder         {self.decoder!r}"]
        lines += [f"processor {number:<5} {processor!r}" for number, processor in enumerate(processors, 1)]
        lines += [f"stop            {criterion!r}" for criterion in self.stop]
        end_ids, pad_id = ("the model's" if ids is None else ids for ids in (self.end_ids, self.pad_id))
        lines += [f"max_new_tokens  {self.max_new_tokens}", f"end_ids         {end_ids}"]
        return "\n".join([*lines, f"pad_id          {pad_id}"])


def from_generation_config(  # noqa: PLR0913 - the arguments of generate
    config: Any,  # transformers' GenerationConfig
    *,
    prompt_length: int | None = None,
    model: Model | nn.Module | None = None,
    tokenizer: Any = None,  # transformers' own
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    negative_prompts: Any = None,  # anything that Prompt.of reads
) -> Recipe:
    """A `GenerationConfig` as a decoder, a chain and stopping criteria.

    The processors are in the order in which `generate` applies them, the caller's before the truncations. A
    processor of the caller replaces the configuration's processor of the same class. Unset options have
    `generate`'s defaults: 20 new tokens, and with `do_sample` the 50 likeliest tokens.

    Args:
        config: A `transformers.GenerationConfig`.
        prompt_length: Columns of the prompts, padding included: needed for `max_length` and
            `min_length`, which count them.
        model: Needed for `guidance_scale`, and for end ids that the configuration does not have.
        tokenizer: Needed for `stop_strings`.
        logits_processor: Processors of the caller, of either library.
        stopping_criteria: Stopping criteria of the caller, of either library.
        prefix_allowed_tokens_fn: The tokens allowed after a text.
        negative_prompts: For guidance, one for each prompt; None: each prompt's last token.

    Raises:
        DecodekitError: If the configuration has an unsupported option, or one that needs an argument that is
            missing; the message names the option.

    Example:
        >>> config = transformers.GenerationConfig(do_sample=True, temperature=0.7, top_k=0, max_new_tokens=9)
        >>> print(dk.compat.hf.from_generation_config(config))
        decoder         Sample(num_samples=1, generator=None, seeds=None)
        processor 1     Temperature(temperature=0.7)
        max_new_tokens  9
        end_ids         the model's
        pad_id          the model's

    Hugging Face:
        The work of `generate` between its arguments and its loop.
    """
    config = plain_config(config)
    if config.top_k is None:
        config.top_k = _TOP_K
    model = wrap(model) if isinstance(model, nn.Module) else model
    own = getattr(getattr(model, "vocabulary", None), "end_ids", None)
    end_ids = read_end_ids(config.eos_token_id)
    setting = Setting(
        config=config,
        end_ids=own if end_ids is None else end_ids,
        prompt_length=prompt_length,
        model=model,
        negative_prompts=negative_prompts,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
    )
    return build(setting, end_ids, tokenizer, logits_processor, stopping_criteria)


def build(
    setting: Setting,
    end_ids: tuple[int, ...] | None,
    tokenizer: Any,  # transformers' own
    processors: Sequence[Any],
    criteria: Sequence[Any],
) -> Recipe:
    """The recipe of a configuration, with the caller's processors and criteria; None: the model's end ids."""
    config = setting.config
    refuse_options(config)
    merged = merge(penalties_and_constraints(setting), processors)
    ours = [
        FromHF(one) for one in [*merged, *(processor for _, processor in (*warpers(setting), *last(setting)))]
    ]
    stop: list[Any] = []
    if config.max_time is not None:
        # A limit of no time stops after one token.
        stop.append(("MaxTimeCriteria", MaxTime(max(config.max_time, _AT_ONCE))))
    if config.stop_strings is not None:
        stop.append(("StopStringCriteria", _stop_strings(config.stop_strings, tokenizer)))
    limit, end_ids, mine = take_limits(criteria, setting.max_new_tokens, end_ids, setting.prompt_length or 0)
    if limit < 1:
        raise DecodekitError(
            f"from_generation_config: max_length must be above the prompt's {setting.prompt_length} columns, "
            f"got {config.max_length}. Use max_new_tokens."
        )
    pad = config.pad_token_id
    return Recipe(
        decoder=decoder_of(config),
        processor=Chain(*ours),
        stop=criteria_of(merge(stop, mine), config),
        max_new_tokens=limit,
        end_ids=end_ids,
        pad_id=None if pad is None else int(pad),
    )


def criteria_of(criteria: Sequence[Any], config: Any) -> tuple[StoppingCriterion, ...]:
    """The criteria for the loop; Hugging Face's get no scores."""
    wrapped = (FromHF(criterion) for criterion in criteria)
    return tuple(
        replace(criterion, scores=NOT_KEPT)
        if config.output_scores and isinstance(criterion, HFCriterion)
        else criterion
        for criterion in wrapped
    )


def take_limits(
    criteria: Sequence[Any], max_new_tokens: int, end_ids: tuple[int, ...] | None, prompt_length: int
) -> tuple[int, tuple[int, ...] | None, list[Any]]:
    """The limits of a run, as criteria of transformers change them, and the other criteria."""
    kinds: dict[str, list[Any]] = {"MaxLengthCriteria": [], "EosTokenCriteria": [], "": []}
    for criterion in criteria:
        kinds.get(type(criterion).__name__, kinds[""]).append(criterion)
    lengths, ends, rest = kinds.values()
    if lengths:
        max_new_tokens = min(int(criterion.max_length) for criterion in lengths) - prompt_length
    if ends:
        end_ids = tuple(token for criterion in ends for token in criterion.eos_token_id.tolist())
    return max_new_tokens, end_ids, rest


def merge(named: Sequence[Named], own: Sequence[Any]) -> list[Any]:
    """`generate`'s parts, each replaced by the caller's part of the same class, then the caller's others."""
    merged = []
    for name, part in named:
        same = [one for one in own if type(one).__name__ == name]
        merged.append(same[0] if same else part)
    return merged + [one for one in own if not any(one is other for other in merged)]


def _stop_strings(strings: Any, tokenizer: Any) -> StoppingCriterion:
    from transformers import StopStringCriteria  # noqa: PLC0415 - slow, needed only here

    if tokenizer is None:
        raise DecodekitError(
            "from_generation_config: stop_strings need the model's tokenizer. Pass tokenizer=, or stop with "
            "dk.StopStrings, which needs no embedding of the vocabulary."
        )
    return FromHF(StopStringCriteria(stop_strings=strings, tokenizer=tokenizer))  # type: ignore[no-any-return]


def decoder_of(config: Any) -> Decoder[Any]:
    """The decoder that a configuration describes."""
    beams, returned = config.num_beams or 1, config.num_return_sequences or 1
    if beams > 1:
        return BeamSearch(
            beams,
            scorer=LengthPenalty(1.0 if config.length_penalty is None else config.length_penalty),
            stop_rule=_STOP_RULES[config.early_stopping or False],
            num_return=returned,
            expansion=SampledExpansion() if config.do_sample else BestExpansion(),
        )
    if config.do_sample:
        return Sample(returned)
    if returned > 1:
        raise DecodekitError(
            f"from_generation_config: greedy search must return one sequence, got "
            f"num_return_sequences={returned}. Use do_sample=True or num_beams."
        )
    return Greedy()
