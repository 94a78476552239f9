"""The command `score`: the log-probabilities of given continuations."""

import math
import time
from typing import Annotated, Any

import typer
from rich.text import Text

import decodekit as dk
from decodekit.cli import options, output
from decodekit.cli.errors import UsageError
from decodekit.cli.run import loaded_model
from decodekit.inspect.table import visible

BATCH = 16  # continuations per forward pass: a bound on memory


def score(
    prompt: options.Prompt,
    continuations: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTINUATION",
            show_default=False,
            callback=options.read_texts,
            help="A text after the prompt, with the space in front if there is one.",
        ),
    ],
    *,
    model: options.Model = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Print the model's log-probability of each CONTINUATION of PROMPT, in all and token by token.

    Log-probabilities are natural logarithms. The mean is over a continuation's tokens.

    With --json, standard output is one JSON object:

    - prompt, model, device and seconds (without loading the model)
    - continuations, in the order given: text, log_prob, length (in tokens), mean, and tokens, each with
      token (its id), text and log_prob
    """
    if "" in continuations:
        raise UsageError("a CONTINUATION is empty. Give each at least one token.")
    with loaded_model(model, device, silent=as_json) as (loaded, progress):
        progress.add_task("scoring", total=None)
        start = time.perf_counter()
        scored = dk.score(loaded, prompt, [continuations], batch_size=BATCH)
        seconds = time.perf_counter() - start
    results = _results(loaded.vocabulary, prompt, continuations, scored)
    if as_json:
        output.print_json(prompt, model, device, {"continuations": results, "seconds": seconds})
    else:
        _print_results(results)


def _results(
    vocabulary: dk.Vocabulary, prompt: str, continuations: list[str], scored: dk.Scored
) -> list[dict[str, Any]]:
    """Every continuation with its numbers, for JSON."""
    prompt_ids = dk.Prompt.of(prompt, vocabulary).ids()[0]
    lengths, log_probs = scored.lengths[0].tolist(), scored.log_prob[0].tolist()
    tokens, token_log_probs = scored.tokens[0].tolist(), scored.token_log_probs[0].tolist()
    return [
        {
            "text": text,
            "log_prob": log_probs[number],
            "length": lengths[number],
            "mean": log_probs[number] / max(lengths[number], 1),
            "tokens": [
                {
                    "token": token,
                    "text": vocabulary.text(prompt_ids + tokens[number][:position], [token]),
                    "log_prob": token_log_probs[number][position],
                }
                for position, token in enumerate(tokens[number][: lengths[number]])
            ],
        }
        for number, text in enumerate(continuations)
    ]


def _print_results(results: list[dict[str, Any]]) -> None:
    """Print the continuations in a table, then the tokens of each."""
    console, table = output.stdout(), output.table("Continuation", "Log-prob", "Tokens", "Mean")
    for result in results:
        numbers = f"{result['log_prob']:.2f}", str(result["length"]), f"{result['mean']:.3f}"
        table.add_row(Text(visible(result["text"])), *numbers)
    console.print(table)
    for result in results:
        tokens = output.table("Token", "Log-prob", "Probability")
        for token in result["tokens"]:
            text = visible(token["text"] or f"<{token['token']}>")
            tokens.add_row(Text(text), f"{token['log_prob']:.2f}", f"{math.exp(token['log_prob']):.2%}")
        console.print()
        console.print(Text(visible(result["text"]), "bold"))
        console.print(tokens)
