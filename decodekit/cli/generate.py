"""The command `generate`: one decoder, with every option it has."""

import secrets
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

import decodekit as dk
from decodekit.cli import options, output
from decodekit.cli.errors import UsageError, constructing
from decodekit.cli.options import CHOICES, option
from decodekit.cli.run import Outcome, Strategy, loaded_model
from decodekit.core.request import DecodeOptions
from decodekit.inspect.table import trace_table

SAMPLING = "Sampling (--decoder sample)"
BEAM_SEARCH = "Beam search (--decoder beam)"
SCORES = "Changes to the scores, in this order"

# Each option that not every decoder has, with the decoders that have it.
_DECODERS_OF = (
    dict.fromkeys(("num_samples", "seed"), ("sample",))
    | dict.fromkeys(("beams", "length_penalty", "stop_rule", "patience", "num_return"), ("beam",))
    # Refused with greedy search: temperature and truncation never change the likeliest token.
    | dict.fromkeys(("temperature", "top_k", "top_p", "min_p"), ("sample", "beam"))
)
_STOP_RULES = {"when-full": dk.WhenFull(), "heuristic": dk.Heuristic(), "proved": dk.Proved()}


def generate(  # noqa: PLR0913 - one parameter per command-line option
    context: typer.Context,
    prompt: options.Prompt,
    *,
    decoder: Annotated[
        Literal["greedy", "sample", "beam"],
        typer.Option(rich_help_panel=options.DECODING, help="The algorithm that chooses the tokens."),
    ] = "greedy",
    max_new_tokens: options.MaxNewTokens = 64,
    stop: options.Stop = None,
    num_samples: Annotated[int, option(SAMPLING, "N", "Independent samples, at least 1.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="drawn, and printed",
            rich_help_panel=SAMPLING,
            help="Any 64-bit integer; the same one gives the same samples.",
        ),
    ] = None,
    beams: Annotated[int, option(BEAM_SEARCH, "N", "Live hypotheses, at least 1.")] = 5,
    length_penalty: Annotated[
        float,
        option(
            BEAM_SEARCH,
            "A",
            "Ranks hypotheses by log-probability over tokens to the power A: 0 by the sum, 1 by the mean. "
            "Any number.",
        ),
    ] = 1.0,
    stop_rule: Annotated[
        Literal["when-full", "heuristic", "proved"],
        option(
            BEAM_SEARCH,
            "RULE",
            "Once as many hypotheses have ended as there are beams, stop at once (when-full), when no live "
            "one looks better (heuristic), or when none can become better (proved).",
        ),
    ] = "heuristic",
    patience: Annotated[
        float | None,
        option(
            BEAM_SEARCH,
            "F",
            "Instead of a stop rule: stop when F x beams hypotheses have finished. Above 0, usually 1 to 2.",
        ),
    ] = None,
    num_return: Annotated[int, option(BEAM_SEARCH, "N", "Hypotheses to print, 1 to the beams.")] = 1,
    repetition_penalty: Annotated[
        float | None,
        option(
            SCORES,
            "X",
            "Makes tokens of the text less likely. Above 0, usually 1.05 to 1.3; below 1 more likely.",
        ),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        option(SCORES, "N", "Lets no n-gram of N tokens occur twice. At least 1, usually 2 to 4."),
    ] = None,
    min_new_tokens: Annotated[
        int | None,
        option(SCORES, "N", "New tokens before the text may end, at most --max-new-tokens.", least=0),
    ] = None,
    suppress: Annotated[
        list[int] | None, option(SCORES, "ID", "Never emits this token. Can be given several times.")
    ] = None,
    temperature: Annotated[
        float | None,
        option(
            SCORES,
            "T",
            "Above 0, usually 0.3 to 1.5: below 1 sharpens the distribution, above 1 flattens it. Not with "
            "greedy. With beam it needs --top-p or --min-p.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        option(SCORES, "K", "Keeps the K likeliest tokens. At least 1, usually 10 to 100. Not with greedy."),
    ] = None,
    top_p: Annotated[
        float | None,
        option(
            SCORES,
            "P",
            "Keeps the smallest set of most likely tokens whose total probability is at least P. 0 to 1, "
            "usually 0.8 to 0.95. Not with greedy.",
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        option(
            SCORES,
            "P",
            "Keeps tokens at least P times as likely as the likeliest. Above 0 to 1, usually 0.01 to 0.2. "
            "Not with greedy.",
        ),
    ] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    trace: options.Trace = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue PROMPT with one decoder.

    An option that would change nothing under the chosen decoder is refused.

    With --json, standard output is one JSON object:

    - prompt, model, device, max_new_tokens, stop (a list), and seed (null unless sampled)
    - decoder and processors, as they are written in Python
    - hypotheses, best first: text (without the prompt), tokens (their ids, the end id included), length
      (in tokens), finish_reason ("end", "length", or "string": --stop), log_prob (the model's own, in
      nats), score (which ranks it) and token_log_probs
    - seconds, without loading the model
    - trace, if requested, an entry per step and row (beam or sample): step, row, input (text so far), tokens
      (new ones so far) and candidates: token, text, log_prob, probability, and score after the
      processors (null if banned)
    """
    _refuse_ignored(context)
    with constructing():
        algorithm: dk.Decoder[Any] = dk.Greedy()
        if decoder == "sample":
            seed = secrets.randbelow(2**32) if seed is None else seed
            algorithm = dk.Sample(num_samples, seeds=[seed])
        elif decoder == "beam":
            algorithm = dk.BeamSearch(
                beams,
                scorer=dk.LengthPenalty(length_penalty),
                stop_rule=_STOP_RULES[stop_rule] if patience is None else dk.Patience(patience),
                num_return=num_return,
            )
        before = _processors((dk.RepetitionPenalty, repetition_penalty), (dk.NoRepeatNGram, no_repeat_ngram))
        after = _processors(
            (dk.SuppressTokens, suppress or None),
            (dk.Temperature, temperature),
            (dk.TopK, top_k),
            (dk.TopP, top_p),
            (dk.MinP, min_p),
        )
        decode_options = DecodeOptions(
            max_new_tokens=max_new_tokens,
            stop=[dk.StopStrings(stop)] if stop else (),
            trace=CHOICES if trace else None,
        )
    with loaded_model(model, device, silent=as_json) as (loaded, progress):
        strategy = Strategy(decoder, algorithm, [*before, *_min_new_tokens(loaded, min_new_tokens), *after])
        outcome = strategy.run(loaded, prompt, decode_options, progress)
    if as_json:
        given = {"max_new_tokens": max_new_tokens, "stop": stop or [], "seed": seed}
        output.print_json(prompt, model, device, given | outcome.document())
    else:
        _print_outcome(loaded, prompt, outcome, seed)


def _refuse_ignored(context: typer.Context) -> None:
    """Raise if an option would change nothing, or two contradict each other."""
    values, decoder = context.params, context.params["decoder"]
    sources = {name: context.get_parameter_source(name) for name in values}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    for name, decoders in _DECODERS_OF.items():
        if name in given and decoder not in decoders:
            raise UsageError(
                f"--{name.replace('_', '-')} would be ignored by --decoder {decoder}. "
                f"It goes with --decoder {' or '.join(decoders)}."
            )
    if decoder == "beam" and "temperature" in given and not given & {"top_p", "min_p"}:
        raise UsageError(
            "--temperature would be ignored by --decoder beam: it scales the scores of all hypotheses "
            "alike. It goes with --decoder sample, or with --top-p or --min-p."
        )
    if {"stop_rule", "patience"} <= given:
        raise UsageError("--stop-rule and --patience both set the stop rule. Give one of them.")
    least, most = values["min_new_tokens"], values["max_new_tokens"]
    if least is not None and least > most:
        raise UsageError(f"--min-new-tokens must be at most --max-new-tokens, got {least} and {most}.")


def _processors(*pairs: tuple[type[Any], Any]) -> list[dk.LogitsProcessor]:
    """Each class with its value, if the value is given."""
    return [make(value) for make, value in pairs if value is not None]


def _min_new_tokens(model: dk.HFModel, number: int | None) -> list[dk.LogitsProcessor]:
    """The ban on the end ids of the model, as `dk.decode` reads them, if a number is given."""
    if number is None:
        return []
    vocabulary = model.vocabulary
    end_ids = [end for end in vocabulary.end_ids if vocabulary.size is None or end < vocabulary.size]
    if not end_ids:
        raise UsageError("--min-new-tokens would be ignored: the model has no end id.")
    return [dk.MinNewTokens(number, end_ids)]


def _print_outcome(model: dk.HFModel, prompt: str, outcome: Outcome, seed: int | None) -> None:
    """Print every hypothesis with its numbers, the trace if there is one, the time and the seed."""
    console = output.stdout()
    for hypothesis in outcome.hypotheses:
        console.print(output.continued(model, prompt, hypothesis.text))
        console.print(output.summary(hypothesis))
        console.print()
    if outcome.decoded.trace is not None:
        console.print(trace_table(outcome.decoded.trace, console.width))
        console.print()
    ending = "" if seed is None else f", --seed {seed}"
    console.print(Text(f"{outcome.seconds:.2f} seconds{ending}", "dim"))
