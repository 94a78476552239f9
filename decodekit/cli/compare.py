"""The command `compare`: strategies side by side."""

from typing import Annotated

from rich.text import Text

import decodekit as dk
from decodekit.cli import options, output
from decodekit.cli.errors import constructing
from decodekit.cli.options import DECODING, option
from decodekit.cli.run import Outcome, Strategy, loaded_model
from decodekit.core.request import DecodeOptions


def compare(  # noqa: PLR0913 - one parameter per command-line option
    prompt: options.Prompt,
    *,
    max_new_tokens: options.MaxNewTokens = 128,
    top_p: Annotated[
        float,
        option(
            DECODING,
            "P",
            "Samples from the smallest set of most likely tokens with probability P in total, 0 to 1.",
        ),
    ] = 0.9,
    seed: Annotated[int, option(DECODING, "N", "Seed of the sample: any 64-bit integer.")] = 0,
    beams: Annotated[int, option(DECODING, "N", "Beams of the beam searches, at least 1.")] = 5,
    no_repeat_ngram: Annotated[
        int,
        option(DECODING, "N", "The second beam search lets no n-gram of N tokens occur twice. At least 1."),
    ] = 2,
    model: options.Model = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Continue PROMPT by greedy search, by sampling and by two beam searches, side by side.

    For each strategy: the model's log-probability of its text (natural logarithm), its length in tokens,
    the time in seconds without loading the model, and the text.

    With --json, standard output is one JSON object:

    - prompt, model, device, max_new_tokens and seed
    - strategies, each with a name, and with decoder, processors, hypotheses (one) and seconds, as
      `decodekit generate --json` has them
    """
    with constructing():
        search = dk.BeamSearch(beams)
        strategies = [
            Strategy("greedy search", dk.Greedy(), []),
            Strategy(f"sampling, top-p {top_p:g}, seed {seed}", dk.Sample(seeds=[seed]), [dk.TopP(top_p)]),
            Strategy(f"beam search, {_count(beams, 'beam')}", search, []),
            Strategy(
                f"beam search, {_count(beams, 'beam')}, no repeated {_ngrams(no_repeat_ngram)}",
                search,
                [dk.NoRepeatNGram(no_repeat_ngram)],
            ),
        ]
    decode_options = DecodeOptions(max_new_tokens=max_new_tokens)
    with loaded_model(model, device, silent=as_json) as (loaded, progress):
        # The first run includes one-time work, which should not count against greedy search.
        Strategy("warming up", dk.BeamSearch(2), []).run(loaded, prompt, {"max_new_tokens": 1}, progress)
        outcomes = [strategy.run(loaded, prompt, decode_options, progress) for strategy in strategies]
    if as_json:
        documents = [{"name": outcome.strategy.name} | outcome.document() for outcome in outcomes]
        results = {"max_new_tokens": max_new_tokens, "seed": seed, "strategies": documents}
        output.print_json(prompt, model, device, results)
    else:
        _print_outcomes(loaded, prompt, outcomes)


def _print_outcomes(model: dk.HFModel, prompt: str, outcomes: list[Outcome]) -> None:
    """Print the numbers in a table, then the texts."""
    console, table = output.stdout(), output.table("Strategy", "Log-prob", "Tokens", "Seconds")
    for outcome in outcomes:
        best = outcome.hypotheses[0]
        numbers = f"{best.log_prob:.2f}", str(best.length), f"{outcome.seconds:.2f}"
        table.add_row(outcome.strategy.name, *numbers)
    console.print(table)
    for outcome in outcomes:
        console.print()
        console.print(Text(outcome.strategy.name, "bold"))
        console.print(output.continued(model, prompt, outcome.hypotheses[0].text))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ngrams(n: int) -> str:
    return {1: "tokens", 2: "bigrams", 3: "trigrams"}.get(n, f"{n}-grams")
