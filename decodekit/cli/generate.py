"""`decodekit generate`: one decoder, with every option it has."""

import secrets
from typing import Annotated, Any

import typer
from rich.text import Text

import decodekit as dk
from decodekit.cli import options, output
from decodekit.cli.decoder_options import beam_search, built, not_ending, refuse_ignored
from decodekit.cli.errors import constructing
from decodekit.cli.loaded_model import name_of, shown_before, workplace
from decodekit.cli.options import DecoderName, StopRuleName
from decodekit.cli.strategy import Outcome, Strategy
from decodekit.cli.trace_output import CHOICES, trace_table

SAMPLING = "Sampling (--decoder sample)"
BEAM_SEARCH = "Beam search (--decoder beam)"
SCORES = "Changes to the scores, in this order"


def generate(  # noqa: PLR0913 - one parameter per command-line option
    context: typer.Context,
    prompt: options.Prompt,
    *,
    decoder: Annotated[
        DecoderName,
        typer.Option(rich_help_panel=options.DECODING, help="The algorithm that chooses the tokens."),
    ] = DecoderName.GREEDY,
    max_new_tokens: options.MaxNewTokens = 64,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=options.DECODING,
            callback=options.read_given_texts,
            help="Ends a hypothesis before this text, wherever it begins and ends among the tokens. Can be "
            "given several times.",
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=SAMPLING, help="Independent samples, at least 1.")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="drawn, and printed",
            rich_help_panel=SAMPLING,
            help="Any 64-bit integer; the same one gives the same samples.",
        ),
    ] = None,
    beams: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=BEAM_SEARCH, help="Live hypotheses, at least 1.")
    ] = 5,
    length_penalty: Annotated[
        float,
        typer.Option(
            metavar="A",
            rich_help_panel=BEAM_SEARCH,
            help="Ranks hypotheses by log-probability over tokens to the power A: 0 by the sum, 1 by the "
            "mean. Any number.",
        ),
    ] = 1.0,
    stop_rule: Annotated[
        StopRuleName,
        typer.Option(
            metavar="RULE",
            rich_help_panel=BEAM_SEARCH,
            help="Once as many hypotheses have ended as there are beams, stop at once (when-full), when "
            "none that is live looks better (heuristic), or when none can become better (proved).",
        ),
    ] = StopRuleName.HEURISTIC,
    patience: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            rich_help_panel=BEAM_SEARCH,
            help="Instead of a stop rule: stop when F times as many hypotheses as beams have ended. Above "
            "0, usually 1 to 2.",
        ),
    ] = None,
    num_return: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=BEAM_SEARCH, help="Hypotheses to print, 1 to the beams."),
    ] = 1,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=SCORES,
            help="Makes tokens that stand in the text less likely. Above 0, usually 1.05 to 1.3; below 1 "
            "more likely.",
        ),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=SCORES,
            help="Lets no N tokens in a row come twice. At least 1, usually 2 to 4.",
        ),
    ] = None,
    min_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=SCORES,
            help="New tokens before the text may end, at most --max-new-tokens.",
        ),
    ] = None,
    suppress: Annotated[
        list[int] | None,
        typer.Option(
            metavar="ID", rich_help_panel=SCORES, help="Never says this token. Can be given several times."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            rich_help_panel=SCORES,
            help="Sharpens the distribution below 1, flattens it above. Above 0, usually 0.3 to 1.5. Not "
            "with greedy, nor with beam without top-p or min-p.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            rich_help_panel=SCORES,
            help="Keeps the K likeliest tokens. At least 1, usually 10 to 100. Not with greedy.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=SCORES,
            help="Keeps the fewest likeliest tokens that together have probability P. 0 to 1, usually 0.8 "
            "to 0.95. Not with greedy.",
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=SCORES,
            help="Keeps tokens at least P times as likely as the likeliest. Above 0 to 1, usually 0.01 to "
            "0.2. Not with greedy.",
        ),
    ] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            rich_help_panel=options.RUN,
            help=f"Also print the {CHOICES} likeliest tokens of every step, with the model's probabilities.",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue PROMPT with one decoder.

    An option that would change nothing under the chosen decoder is refused.

    With --json, standard output is one JSON object:

    - prompt, model, device, max_new_tokens, stop (a list), and seed (null unless sampled)
    - decoder and processors, as they are written in Python
    - hypotheses, best first: text (without the prompt), tokens (their ids, the end id included), length
      (in tokens), finish_reason ("end", "length", or "string": --stop), log_prob (the model's own, in
      nats), score (what it was ranked by) and token_log_probs
    - seconds, without loading the model
    - trace, if asked for, an entry a step and row (beam or sample): step, row, input (text so far), tokens
      (new ones so far) and candidates: token, text, log_prob, probability, and score after the
      processors (null if banned)
    """
    refuse_ignored(context)
    with constructing():
        criteria = [dk.StopStrings(stop)] if stop else []
        algorithm: dk.Decoder[Any] = dk.Greedy()
        if decoder is DecoderName.SAMPLE:
            seed = secrets.randbelow(2**32) if seed is None else seed
            algorithm = dk.Sample(num_samples, seeds=[seed])
        elif decoder is DecoderName.BEAM:
            algorithm = beam_search(beams, length_penalty, stop_rule, patience, num_return)
        before = built((dk.RepetitionPenalty, repetition_penalty), (dk.NoRepeatNGram, no_repeat_ngram))
        after = built(
            (dk.SuppressTokens, suppress or None),
            (dk.Temperature, temperature),
            (dk.TopK, top_k),
            (dk.TopP, top_p),
            (dk.MinP, min_p),
        )
    with workplace(model, device, silent=as_json) as (loaded, progress):
        chain = [*before, *not_ending(loaded, min_new_tokens), *after]
        strategy = Strategy(decoder, algorithm, chain, criteria)
        outcome = strategy.run(loaded, prompt, max_new_tokens, progress, trace=CHOICES if trace else None)
    if as_json:
        output.print_json(
            {
                "prompt": prompt,
                "model": name_of(model),
                "device": device,
                "max_new_tokens": max_new_tokens,
                "stop": stop or [],
                "seed": seed,
            }
            | outcome.document()
        )
    else:
        _print_outcome(shown_before(loaded, prompt), outcome, seed)


def _print_outcome(prompt: str, outcome: Outcome, seed: int | None) -> None:
    """Every hypothesis with its numbers, the trace if there is one, and how to get the same again."""
    console = output.stdout()
    for hypothesis in outcome.hypotheses:
        console.print(output.continued(prompt, hypothesis.text))
        console.print(output.summary(hypothesis))
        console.print()
    if outcome.decoded.trace is not None:
        console.print(trace_table(outcome.decoded.trace, console.width))
        console.print()
    ending = "" if seed is None else f", --seed {seed}"
    console.print(Text(f"{outcome.seconds:.2f} seconds{ending}", "dim"))
