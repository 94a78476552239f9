import json
import math
import os
import re
import secrets
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

import decodekit as dk
from decodekit.cli import app, options
from decodekit.core.request import DecodeOptions
from decodekit.inspect.table import visible

PROMPT = "Once upon a time"
SAMPLE = ("--decoder", "sample")
BEAM = ("--decoder", "beam")


@pytest.fixture(scope="module")
def model() -> dk.HFModel:
    return dk.load()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


def generated(*arguments: str) -> dict[str, Any]:
    return document("generate", PROMPT, "--max-new-tokens", "4", *arguments)


def assert_mistake(result: Result, code: int, message: str) -> None:
    assert (code, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("decodekit: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def in_process_of_its_own(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603 - the arguments are written below
        [sys.executable, "-m", "decodekit", *arguments],
        capture_output=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment,
    )


# The group


def test_version_is_the_packages() -> None:
    assert f"decodekit {version('decodekit')}\n" == run("--version").stdout


def test_no_arguments_show_the_help_page() -> None:
    assert run("--help").stdout == run().stdout
    assert run().exit_code == 0


@pytest.mark.parametrize("command", ["generate", "compare", "score"])
def test_help_documents_the_json(command: str) -> None:
    assert "With --json, standard output is one JSON object" in run(command, "--help").stdout


def test_ctrl_c_exits_130_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dk, "load", interrupted)
    result = run("generate", PROMPT)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to")])
def test_too_little_memory_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(dk, "decode", too_large)
    assert_mistake(run("generate", PROMPT), 1, "out of memory")


def test_what_is_no_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def nonfinite(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(dk, "decode", nonfinite)
    assert isinstance(run("generate", PROMPT).exception, RuntimeError)


def test_quietness_ends_with_the_command() -> None:
    from transformers.utils import logging  # noqa: PLC0415 - slow

    before = logging.is_progress_bar_enabled(), logging.get_verbosity(), list(warnings.filters)
    run("generate", PROMPT, "--max-new-tokens", "1")
    assert before == (logging.is_progress_bar_enabled(), logging.get_verbosity(), warnings.filters)


# The options of a run


def test_every_option_of_a_run_is_an_option_of_decode_with_its_documentation() -> None:
    for command in typer.main.get_group(app).commands.values():
        for parameter in command.params:
            in_panel = getattr(parameter, "rich_help_panel", None) == options.DECODE_OPTIONS
            assert in_panel == (parameter.name in DecodeOptions.__annotations__)
            if in_panel:
                assert getattr(parameter, "help", "").startswith(options.documented(str(parameter.name)))


def test_the_documentation_of_an_option_is_the_first_clause_of_its_entry() -> None:
    for name in DecodeOptions.__annotations__:
        assert re.fullmatch(r"[A-Z][^.:;\n]+\.(\d[^.:;\n]+\.)?", options.documented(name)), name
    assert options.documented("max_new_tokens") == "Limit of new tokens per hypothesis, at least 1."
    with pytest.raises(KeyError, match="beams"):
        options.documented("beams")


# Mistakes


@pytest.mark.parametrize(
    ("decoder", "option", "home"),
    [
        ("greedy", "--beams=2", "beam"),
        ("greedy", "--length-penalty=0", "beam"),
        ("greedy", "--stop-rule=proved", "beam"),
        ("greedy", "--patience=1", "beam"),
        ("greedy", "--num-return=1", "beam"),
        ("greedy", "--num-samples=1", "sample"),
        ("greedy", "--seed=0", "sample"),
        ("greedy", "--temperature=1", "sample or beam"),
        ("greedy", "--top-k=1", "sample or beam"),
        ("greedy", "--top-p=1", "sample or beam"),
        ("greedy", "--min-p=1", "sample or beam"),
        ("sample", "--beams=5", "beam"),
        ("sample", "--length-penalty=1", "beam"),
        ("sample", "--stop-rule=heuristic", "beam"),
        ("sample", "--patience=1", "beam"),
        ("sample", "--num-return=1", "beam"),
        ("beam", "--num-samples=1", "sample"),
        ("beam", "--seed=0", "sample"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(decoder: str, option: str, home: str) -> None:
    name = option.partition("=")[0]
    message = f"{name} would be ignored by --decoder {decoder}. It goes with --decoder {home}."
    assert_mistake(run("generate", PROMPT, "--decoder", decoder, option), 2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*BEAM, "--temperature", "2"), "--temperature would be ignored by --decoder beam"),
        ((*BEAM, "--temperature", "2", "--top-k", "9"), "--temperature would be ignored by --decoder beam"),
        (
            (*BEAM, "--stop-rule", "heuristic", "--patience", "1"),
            "--stop-rule and --patience both set the stop rule",
        ),
        (("--max-new-tokens", "3", "--min-new-tokens", "4"), "at most --max-new-tokens, got 4 and 3."),
        (("--max-new-tokens", "0"), "'--max-new-tokens'"),
        (("--min-new-tokens", "-1"), "'--min-new-tokens'"),
        (("--max-new-tokens", "many"), "'--max-new-tokens'"),
        (("--decoder", "best"), "'--decoder'"),
        ((*BEAM, "--stop-rule", "never"), "'--stop-rule'"),
        (
            (*BEAM, "--beams", "0"),
            "BeamSearch: beams must be an integer of at least 1, or one per step, got 0.",
        ),
        (
            (*BEAM, "--beams", "2", "--num-return", "3"),
            "BeamSearch: num_return must be an integer from 1 to 2",
        ),
        ((*BEAM, "--patience", "0"), "Patience: factor must be"),
        ((*BEAM, "--length-penalty", "nan"), "LengthPenalty: alpha must be"),
        ((*SAMPLE, "--num-samples", "0"), "Sample: num_samples must be"),
        ((*SAMPLE, "--seed", str(2**63)), "Sample: seeds must be"),
        ((*SAMPLE, "--temperature", "0"), "Temperature: temperature must be"),
        ((*SAMPLE, "--top-k", "0"), "TopK: k must be"),
        ((*SAMPLE, "--top-p", "1.5"), "TopP: p must be in [0, 1], got 1.5."),
        ((*SAMPLE, "--min-p", "0"), "MinP: p must be"),
        (("--repetition-penalty", "0"), "RepetitionPenalty: penalty must be"),
        (("--no-repeat-ngram", "0"), "NoRepeatNGram: n must be"),
        (("--stop", ""), "StopStrings: strings must be text of some length"),
        (("--suppress", "-1"), "SuppressTokens: token ids must be"),
        (("--device", "abacus"), "--device 'abacus' cannot be used on this machine"),
        (("--device", "meta"), "--device 'meta' cannot be used on this machine"),
        (("--device", "cuda:99"), "--device 'cuda:99' cannot be used on this machine"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_a_mistake_in_the_options_of_generate_exits_2(arguments: tuple[str, ...], message: str) -> None:
    assert_mistake(run("generate", PROMPT, *arguments), 2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("genrate", PROMPT), "Did you mean 'generate'?"),
        (("gen", PROMPT), "No such command 'gen'. Did you mean 'generate'?"),
        (("frobnicate",), "See decodekit --help."),
        (("--versoin",), "Did you mean '--version'?"),
        (("generate", PROMPT, "--decoder", "bean"), "Did you mean 'beam'?"),
        (("generate", PROMPT, "--stop-rule", "prooved"), "Did you mean 'proved'?"),
        (("generate", PROMPT, "--max-new-token", "3"), "Did you mean '--max-new-tokens'?"),
        (("compare", PROMPT, "--beam", "3"), "Did you mean '--beams'?"),
        (("generate", PROMPT, "--frobnicate"), "See decodekit generate --help."),
        (("generate",), "Missing argument 'PROMPT'."),
        (("generate", "bytes: \udcff"), "must be valid UTF-8 text."),
        (("compare", PROMPT, "--beams", "0"), "BeamSearch: beams must be"),
        (("compare", PROMPT, "--top-p", "-1"), "TopP: p must be"),
        (("compare", PROMPT, "--no-repeat-ngram", "0"), "NoRepeatNGram: n must be"),
        (("score", PROMPT), "Missing argument 'CONTINUATION'."),
        (("score", PROMPT, " one", ""), "a CONTINUATION is empty"),
        (("score", PROMPT, " one", "\udcff"), "must be valid UTF-8 text."),
    ],
)
def test_a_mistake_on_the_command_line_exits_2(arguments: tuple[str, ...], message: str) -> None:
    assert_mistake(run(*arguments), 2, message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_said_in_one_line() -> None:
    assert_mistake(run("generate", PROMPT, "--device", "cuda"), 2, "--device 'cuda' cannot be used")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-new-tokens", "1000000"), "HFModel: prompt and continuation must fit"),
        (("--suppress", "1000000"), "SuppressTokens: token ids must be below the vocabulary size"),
        ((*BEAM, "--beams", "5000", "--max-new-tokens", "1"), "BeamSearch: there must be at least as many"),
    ],
)
def test_a_run_that_cannot_be_right_exits_1(arguments: tuple[str, ...], message: str) -> None:
    assert_mistake(run("generate", PROMPT, *arguments), 1, message)


def test_a_run_in_which_nothing_may_be_said_exits_1(model: dk.HFModel) -> None:
    banned = [f"--suppress={token}" for token in range(model.vocabulary.size or 0)]
    assert_mistake(run("generate", PROMPT, *banned), 1, "every token is banned for prompt 0")


@pytest.mark.parametrize("command", [("generate",), ("compare",), ("score", " there")])
def test_a_folder_that_is_no_model_exits_1(command: tuple[str, ...], tmp_path: Path) -> None:
    name, *continuations = command
    assert_mistake(run(name, PROMPT, *continuations, "--model", str(tmp_path)), 1, "load: ")


def test_a_model_file_that_is_cut_short_exits_1(tmp_path: Path) -> None:
    for path in dk.bundled_path().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100_000])
    assert_mistake(
        run("generate", PROMPT, "--model", str(tmp_path)), 1, "must be a language model in a folder"
    )


def test_min_new_tokens_needs_an_end_id(tmp_path: Path) -> None:
    for path in dk.bundled_path().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((tmp_path / name).read_text()) | {"eos_token_id": None}
        (tmp_path / name).write_text(json.dumps(settings))
    result = run("generate", PROMPT, "--min-new-tokens", "2", "--model", str(tmp_path))
    assert_mistake(result, 2, "the model has no end id")


# generate


@pytest.mark.parametrize(
    ("arguments", "decoder"),
    [
        ((), "Greedy()"),
        ((*SAMPLE, "--seed", "7"), "Sample(num_samples=1, generator=None, seeds=(7,))"),
        (
            (*SAMPLE, "--num-samples", "3", "--seed", "-7"),
            "Sample(num_samples=3, generator=None, seeds=(-7,))",
        ),
        (BEAM, str(dk.BeamSearch(5))),
        ((*BEAM, "--beams", "3", "--num-return", "2"), str(dk.BeamSearch(3, num_return=2))),
        ((*BEAM, "--length-penalty", "-0.5"), str(dk.BeamSearch(5, scorer=dk.LengthPenalty(-0.5)))),
        ((*BEAM, "--stop-rule", "when-full"), str(dk.BeamSearch(5, stop_rule=dk.WhenFull()))),
        ((*BEAM, "--stop-rule", "heuristic"), str(dk.BeamSearch(5, stop_rule=dk.Heuristic()))),
        ((*BEAM, "--stop-rule", "proved"), str(dk.BeamSearch(5, stop_rule=dk.Proved()))),
        ((*BEAM, "--patience", "1.5"), str(dk.BeamSearch(5, stop_rule=dk.Patience(1.5)))),
    ],
)
def test_decoder_options_reach_the_decoder(arguments: tuple[str, ...], decoder: str) -> None:
    assert decoder == generated(*arguments)["decoder"]


def test_processors_come_in_hugging_faces_order(model: dk.HFModel) -> None:
    ends = model.vocabulary.end_ids
    written_backwards = ("--min-p=0.01", "--top-p=0.9", "--top-k=20", "--temperature=0.7", "--suppress=5")
    rest = ("--suppress=6", "--min-new-tokens=2", "--no-repeat-ngram=3", "--repetition-penalty=1.2")
    processors = [
        dk.RepetitionPenalty(1.2),
        dk.NoRepeatNGram(3),
        dk.MinNewTokens(2, ends),
        dk.SuppressTokens([5, 6]),
        dk.Temperature(0.7),
        dk.TopK(20),
        dk.TopP(0.9),
        dk.MinP(0.01),
    ]
    found = generated(*SAMPLE, *written_backwards, *rest, "--seed=3", "--num-samples=2")
    assert [repr(processor) for processor in processors] == found["processors"]
    out = dk.decode(model, PROMPT, dk.Sample(2, seeds=[3]), processors, max_new_tokens=4)
    assert out.hypotheses()[0] == [hypothesis["tokens"] for hypothesis in found["hypotheses"]]


@pytest.mark.parametrize("option", ["--top-p=0.5", "--min-p=0.5"])
def test_temperature_counts_in_a_beam_search_that_truncates(option: str) -> None:
    found = generated(*BEAM, "--temperature", "3", option)
    assert found["processors"][0] == "Temperature(temperature=3.0)"


def test_generate_says_what_decode_gives(model: dk.HFModel) -> None:
    found = generated(*BEAM, "--beams", "3", "--num-return", "2", "--no-repeat-ngram", "2")
    out = dk.decode(model, PROMPT, dk.BeamSearch(3, num_return=2), dk.NoRepeatNGram(2), max_new_tokens=4)
    expected = [
        {
            "text": (out.texts or [])[0][rank],
            "tokens": tokens,
            "length": len(tokens),
            "finish_reason": out.finish_reason[0][rank],
            "log_prob": out.log_prob[0, rank].item(),
            "score": out.score[0, rank].item(),
            "token_log_probs": out.token_log_probs[0, rank, : len(tokens)].tolist(),
        }
        for rank, tokens in enumerate(out.hypotheses()[0])
    ]
    assert expected == found.pop("hypotheses")
    assert found.pop("seconds") > 0
    assert found == {
        "prompt": PROMPT,
        "model": str(dk.bundled_path()),
        "device": "cpu",
        "max_new_tokens": 4,
        "stop": [],
        "seed": None,
        "decoder": repr(dk.BeamSearch(3, num_return=2)),
        "processors": ["NoRepeatNGram(n=2)"],
    }


@pytest.mark.parametrize("decoder", [(), (*SAMPLE, "--seed", "7", "--num-samples", "3"), BEAM])
def test_text_ends_before_a_stop_text(decoder: tuple[str, ...]) -> None:
    arguments = ("generate", "Once upon a time there was", *decoder, "--max-new-tokens", "12")
    free = document(*arguments)["hypotheses"]
    found = document(*arguments, "--stop", " m", "--stop", "e")
    assert found["stop"] == [" m", "e"]
    for hypothesis in found["hypotheses"]:
        assert hypothesis["finish_reason"] == "string"
        assert " m" not in hypothesis["text"]
        assert "e" not in hypothesis["text"]
    if decoder != BEAM:  # the same tokens are drawn, and cut
        assert [re.split(" m|e", h["text"])[0] for h in free] == [h["text"] for h in found["hypotheses"]]


def test_how_a_hypothesis_ended_is_printed() -> None:
    arguments = ("generate", "Once upon a time there was", "--max-new-tokens", "4")
    assert "ended at --stop" in run(*arguments, "--stop", " man").stdout
    assert "cut at --max-new-tokens" in run(*arguments, "--stop", "princess").stdout


def test_the_model_can_be_given_by_its_folder() -> None:
    by_default, by_folder = generated(), generated("--model", str(dk.bundled_path()))
    assert by_default | {"seconds": 0} == by_folder | {"seconds": 0}


def test_a_translation_is_printed_without_the_sentence() -> None:
    arguments = ("I love you.", "--model", "en-fr", "--max-new-tokens", "20")
    translation = document("generate", *arguments)["hypotheses"][0]["text"]
    assert run("generate", *arguments).stdout.splitlines()[0] == translation
    compared = run("compare", *arguments).stdout
    assert translation in compared.splitlines()
    assert "I love you." not in compared


def test_a_seed_that_was_drawn_is_reported_and_gives_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([5, 6])
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(drawn))
    first = generated(*SAMPLE, "--num-samples", "2", "--temperature", "5")
    again = generated(*SAMPLE, "--num-samples", "2", "--temperature", "5", "--seed", str(first["seed"]))
    assert first["hypotheses"] == again["hypotheses"]
    other = generated(*SAMPLE, "--num-samples", "2", "--temperature", "5")
    assert (first["seed"], other["seed"]) == (5, 6)


def test_the_seed_is_printed() -> None:
    printed = run("generate", PROMPT, *SAMPLE, "--seed", "12345", "--max-new-tokens", "2").stdout
    assert "--seed 12345" in printed


def test_an_empty_prompt_starts_a_text() -> None:
    assert len(document("generate", "", "--max-new-tokens", "3")["hypotheses"]) == 1


def test_generate_prints_every_hypothesis_after_its_prompt_with_its_numbers() -> None:
    found = generated(*BEAM, "--num-return", "3")["hypotheses"]
    printed = run("generate", PROMPT, *BEAM, "--num-return", "3", "--max-new-tokens", "4").stdout
    assert len(found) == printed.count(PROMPT)
    for hypothesis in found:
        assert visible(PROMPT + hypothesis["text"], keep="\n\t") in printed
        assert f"log-probability {hypothesis['log_prob']:.2f} nats" in printed
        assert f"score {hypothesis['score']:.4f}" in printed


def test_text_that_looks_like_markup_is_printed_as_it_is() -> None:
    prompt = "[bold]Once[/bold] :smile: [link=x] \\[red]"
    assert prompt in run("generate", prompt, "--max-new-tokens", "1").stdout
    assert run("compare", prompt, "--max-new-tokens", "1").stdout.count(prompt) == 4
    assert prompt in run("score", prompt, prompt).stdout


def test_control_characters_reach_no_terminal() -> None:
    printed = run("generate", "bell \a red \x1b[31m tab \t.", "--max-new-tokens", "1").stdout
    assert r"bell \x07 red \x1b[31m tab " in printed
    assert "\x1b" not in printed


def test_arguments_that_python_could_not_read_are_read_as_utf_8() -> None:
    read_as_ascii = "K\u00f6nig".encode().decode("ascii", "surrogateescape")
    assert document("generate", read_as_ascii, "--max-new-tokens", "1")["prompt"] == "K\u00f6nig"


# --trace


def test_a_trace_in_json_is_the_librarys(model: dk.HFModel) -> None:
    found = generated(*BEAM, "--beams", "2", "--trace")["trace"]
    trace = dk.decode(model, PROMPT, dk.BeamSearch(2), max_new_tokens=4, trace=5).trace
    assert trace is not None
    assert len(list(trace)) == len(found)
    for choice, entry in zip(trace, found, strict=True):
        assert (choice.step, choice.row, choice.text) == (entry["step"], entry["row"], entry["input"])
        assert choice.tokens == entry["tokens"]
        assert [candidate.token for candidate in choice.candidates] == [
            c["token"] for c in entry["candidates"]
        ]
        assert len(entry["candidates"]) == 5
        for candidate in entry["candidates"]:
            assert math.exp(candidate["log_prob"]) == candidate["probability"]


def test_a_banned_candidate_scores_null() -> None:
    likeliest = generated()["hypotheses"][0]["tokens"][0]
    found = generated("--suppress", str(likeliest), "--trace")
    candidate = found["trace"][0]["candidates"][0]
    assert (likeliest, None) == (candidate["token"], candidate["score"])
    assert candidate["log_prob"] < 0


def test_without_trace_there_is_none() -> None:
    assert "trace" not in generated()
    assert "Choice" not in run("generate", PROMPT, "--max-new-tokens", "1").stdout


def test_the_trace_table_has_a_line_a_step_with_five_choices_in_percent() -> None:
    printed = run("generate", PROMPT, "--max-new-tokens", "3", "--suppress", "0", "--trace").stdout
    lines = printed.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("Step"))
    assert re.findall(r"Step|Input|Choice \d", lines[header]) == [
        "Step",
        "Input",
        *(f"Choice {rank}" for rank in range(1, 6)),
    ]
    for step in range(3):
        line = lines[header + 1 + step]
        assert line.split()[0] == str(step)
        assert line.count("%") == 5
        assert len(line) <= 80


# compare


def test_compare_runs_the_four_strategies(model: dk.HFModel) -> None:
    found = document("compare", PROMPT, "--max-new-tokens", "4")
    expected = [
        ("greedy search", dk.Greedy(), []),
        ("sampling, top-p 0.9, seed 0", dk.Sample(seeds=[0]), [dk.TopP(0.9)]),
        ("beam search, 5 beams", dk.BeamSearch(5), []),
        ("beam search, 5 beams, no repeated bigrams", dk.BeamSearch(5), [dk.NoRepeatNGram(2)]),
    ]
    for (name, decoder, processors), strategy in zip(expected, found["strategies"], strict=True):
        out = dk.decode(model, PROMPT, decoder, processors, max_new_tokens=4)
        assert (name, repr(decoder)) == (strategy["name"], strategy["decoder"])
        assert [repr(processor) for processor in processors] == strategy["processors"]
        (hypothesis,) = strategy["hypotheses"]
        assert out.hypotheses()[0] == [hypothesis["tokens"]]
        assert out.log_prob[0, 0].item() == hypothesis["log_prob"]
        assert out.texts == [[hypothesis["text"]]]
        assert strategy["seconds"] > 0
    assert (found["prompt"], found["max_new_tokens"], found["seed"]) == (PROMPT, 4, 0)


def test_compare_options_reach_the_strategies() -> None:
    options = ("--beams=3", "--top-p=0.5", "--no-repeat-ngram=3", "--seed=9", "--max-new-tokens=2")
    found = document("compare", PROMPT, *options)
    assert [strategy["name"] for strategy in found["strategies"]] == [
        "greedy search",
        "sampling, top-p 0.5, seed 9",
        "beam search, 3 beams",
        "beam search, 3 beams, no repeated trigrams",
    ]
    _, sample, beam, no_repeat = found["strategies"]
    assert repr(dk.Sample(seeds=[9])) == sample["decoder"]
    assert [repr(dk.TopP(0.5))] == sample["processors"]
    assert repr(dk.BeamSearch(3)) == beam["decoder"] == no_repeat["decoder"]
    assert no_repeat["processors"] == ["NoRepeatNGram(n=3)"]
    assert found["max_new_tokens"] == 2


def test_compare_prints_the_numbers_then_the_texts() -> None:
    found = document("compare", PROMPT, "--max-new-tokens", "4")["strategies"]
    printed = run("compare", PROMPT, "--max-new-tokens", "4").stdout
    lines = printed.splitlines()
    assert lines[0].split() == ["Strategy", "Log-prob", "Tokens", "Seconds"]
    for line, strategy in zip(lines[1:5], found, strict=True):
        (hypothesis,) = strategy["hypotheses"]
        assert line.startswith(strategy["name"])
        assert [f"{hypothesis['log_prob']:.2f}", str(hypothesis["length"])] == line.split()[-3:-1]
        assert len(line) <= 80
        text = visible(PROMPT + hypothesis["text"], keep="\n\t")
        assert f"\n\n{strategy['name']}\n{text}\n" in printed


# score


def test_score_says_what_the_library_gives(model: dk.HFModel) -> None:
    found = document("score", PROMPT, " there", " was a king")
    scored = dk.score(model, PROMPT, [[" there", " was a king"]])
    assert [entry["text"] for entry in found["continuations"]] == [" there", " was a king"]
    for rank, entry in enumerate(found["continuations"]):
        length = int(scored.lengths[0, rank])
        assert (length, scored.log_prob[0, rank].item()) == (entry["length"], entry["log_prob"])
        assert entry["log_prob"] / length == entry["mean"]
        assert scored.tokens[0, rank, :length].tolist() == [token["token"] for token in entry["tokens"]]
        log_probs = [token["log_prob"] for token in entry["tokens"]]
        assert scored.token_log_probs[0, rank, :length].tolist() == log_probs
        assert entry["text"] == "".join(token["text"] for token in entry["tokens"])
    assert (PROMPT, str(dk.bundled_path())) == (found["prompt"], found["model"])
    assert found["seconds"] > 0


def test_more_continuations_than_a_batch_are_all_scored() -> None:
    continuations = [f" a {number}" for number in range(20)]
    found = document("score", PROMPT, *continuations)["continuations"]
    assert continuations == [entry["text"] for entry in found]


def test_score_prints_a_table_of_continuations_and_one_of_tokens() -> None:
    found = document("score", PROMPT, " there", " was")["continuations"]
    printed = run("score", PROMPT, " there", " was").stdout
    assert printed.startswith("Continuation")
    for entry in found:
        assert f"{entry['log_prob']:.2f}" in printed
        assert f"{entry['mean']:.3f}" in printed
        for token in entry["tokens"]:
            assert f"{math.exp(token['log_prob']):.2%}" in printed


# Streams


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the streams of the next runs say that they are a terminal."""
    import typer.testing  # noqa: PLC0415

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return lambda: monkeypatch.setattr(
        typer.testing._NamedTextIOWrapper, "isatty", lambda _: True, raising=False
    )


def test_progress_is_shown_on_a_terminal_and_wiped(on_a_terminal: Callable[[], None]) -> None:
    on_a_terminal()
    result = run("compare", PROMPT, "--max-new-tokens", "20")
    assert "loading the bundled model" in result.stderr
    after_the_last_wipe = result.stderr.split("\x1b[2K")[-1]
    assert re.sub(r"\x1b\[[?\d]*[a-z]", "", after_the_last_wipe).strip() == ""
    assert "loading" not in result.stdout


def test_the_prompt_is_dimmed_on_a_terminal(on_a_terminal: Callable[[], None]) -> None:
    on_a_terminal()
    assert f"\x1b[2m{PROMPT}\x1b[0m" in run("generate", PROMPT, "--max-new-tokens", "1").stdout


def test_json_comes_without_progress_and_colour_on_a_terminal(on_a_terminal: Callable[[], None]) -> None:
    on_a_terminal()
    assert document("compare", PROMPT, "--max-new-tokens", "2")["prompt"] == PROMPT


@pytest.mark.slow
def test_results_go_to_standard_output_and_nothing_else_does() -> None:
    done = in_process_of_its_own("generate", PROMPT, "--max-new-tokens", "2", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["prompt"] == PROMPT


@pytest.mark.slow
def test_a_mistake_goes_to_standard_error_without_a_traceback() -> None:
    done = in_process_of_its_own("generate", PROMPT, "--beams", "3")
    assert (done.returncode, done.stdout) == (2, b"")
    message = "decodekit: --beams would be ignored by --decoder greedy. It goes with --decoder beam."
    assert message == done.stderr.decode().strip()


@pytest.mark.slow
def test_a_terminal_without_the_letters_gets_question_marks() -> None:
    done = in_process_of_its_own(
        "compare", "K\u00f6nig \u738b", "--max-new-tokens", "1", PYTHONIOENCODING="ascii"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"K?nig ?" in done.stdout


@pytest.mark.slow
def test_help_needs_no_transformers() -> None:
    code = "import sys, decodekit.cli; sys.exit('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)  # noqa: S603 - written above
    assert done.returncode == 0
