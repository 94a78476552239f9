"""What transformers 4.55.4 is asked, for `transformers.json`."""

import itertools
from collections.abc import Iterator
from typing import Any

PAD = 7
EQUAL = [[3, 14, 15], [9, 2, 6], [35, 8, 21]]
RAGGED = [[3, 14, 15], [9, 2, 6, 5], [35, 8], [29, 31, 1, 12, 20]]
ENDS = [[], [18], [13, 29]]
NEW = 12
LENGTHS = list(itertools.product([0.0, 1.0, 2.0], [False, True, "never"]))
PUNISHED = [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}]
PUNISHED += [{"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}]

Case = dict[str, Any]


def case(kind: str, settings: dict[str, Any], prompts: list[list[int]] = RAGGED, **rest: Any) -> Case:  # noqa: ANN401
    defaults = {"model": "gpt2", "end": [18], "pad": PAD, "max_new_tokens": NEW}
    return {"kind": kind, "prompts": prompts, **defaults, **rest, "settings": settings}


def plain() -> Iterator[Case]:
    """Greedy and beam search, which the installed transformers must answer in the same way."""
    for model, end in itertools.product(("gpt2", "gpt2-untied"), ENDS):
        yield case("greedy", {}, model=model, end=end)
        yield case("greedy", {"repetition_penalty": 1.3}, EQUAL, model=model, end=end)
        for penalty, early in LENGTHS[1::2]:
            beams = {"num_beams": 4, "num_return_sequences": 2}
            settings = {**beams, "length_penalty": penalty, "early_stopping": early}
            yield case("beam", settings, model=model, end=end)


def group_beams() -> Iterator[Case]:
    widths = [(4, 2), (4, 4), (6, 2), (6, 3), (6, 6)]
    grid = itertools.product(widths, (0.3, 1.5), LENGTHS)
    for number, ((beams, groups), diversity, (length, early)) in enumerate(grid):
        settings = {
            "num_beams": beams,
            "num_beam_groups": groups,
            "diversity_penalty": diversity,
            "num_return_sequences": (1, beams // 2, beams)[number % 3],
            "length_penalty": length,
            "early_stopping": early,
        }
        prompts = (RAGGED, EQUAL)[number % 2]
        model = ("gpt2", "gpt2", "gpt2-untied")[number // 2 % 3]
        yield case("group_beam", settings, prompts, end=ENDS[(number + number // 9) % 3], model=model)
        if number % 5 == 0:
            punished = {**settings, **PUNISHED[number // 5 % 3]}
            yield case("group_beam", punished, EQUAL, end=ENDS[number // 15 % 3], model=model)
    # Padding with the end token, as is usual for GPT-2: once a group has finished, others are kept from it.
    settings = {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 1.5, "num_return_sequences": 4}
    yield case("group_beam", settings, EQUAL, end=[29], pad=29)


def contrastive() -> Iterator[Case]:
    grid = itertools.product((0.3, 0.6), (2, 4, 6), (EQUAL, RAGGED), ([], [18]))
    for number, (alpha, k, prompts, end) in enumerate(grid):
        model = ("gpt2", "gpt2-untied")[(number + number // 4) % 2]
        settings = {"penalty_alpha": alpha, "top_k": k}
        yield case("contrastive", settings, prompts, end=end, model=model)
        if prompts is EQUAL:
            punished = {**settings, **PUNISHED[number // 4 % 3]}
            yield case("contrastive", punished, prompts, end=end, model=model)
    # Three tokens may follow, and six candidates are asked for: banned ones of probability 0 compete too.
    banned = {"bad_words_ids": [[token] for token in range(40) if token not in (3, 14, 29)]}
    yield case("contrastive", {"penalty_alpha": 0.6, "top_k": 6, **banned}, EQUAL, end=[])


def dola() -> Iterator[Case]:
    choices = ["low", "high", [2], [1, 3], [2, 4, 5], [0, 2, 4]]
    for model, layers, penalty, end in itertools.product(
        ("gpt2", "gpt2-untied"), choices, (1.0, 1.2), ([], [18])
    ):
        settings = {"dola_layers": layers, **({"repetition_penalty": penalty} if penalty != 1 else {})}
        for prompt in RAGGED[1:3]:
            yield case("dola", settings, [prompt], model=model, end=end)
    for model in ("gpt2", "gpt2-untied"):
        yield case("dola-batch", {"dola_layers": [0, 2, 4]}, RAGGED, model=model, end=[])


def constrained() -> Iterator[Case]:
    forced: list[dict[str, Any]] = [
        {"force_words_ids": [[33]]},
        {"force_words_ids": [[33, 4]]},
        {"force_words_ids": [[33], [4, 10]]},
        {"force_words_ids": [[[33, 4], [10, 17], [26]]]},
        {"force_words_ids": [[33, 4], [[10], [17, 5]]]},
        {"constraints": [{"phrase": [17, 10, 4]}]},
        {"constraints": [{"any_of": [[4, 10, 33], [4, 17], [26, 5]]}]},
        {"constraints": [{"phrase": [33, 4]}, {"phrase": [17]}]},
        {"constraints": [{"phrase": [25, 10]}, {"any_of": [[4, 33], [17, 5, 26]]}]},
    ]
    for number, ((beams, words), (length, early)) in enumerate(
        itertools.product(itertools.product((4, 6), forced), LENGTHS[::4])
    ):
        settings = {
            "num_beams": beams,
            "num_return_sequences": (1, 2, beams)[number % 3],
            "length_penalty": length,
            "early_stopping": early,
            **words,
        }
        prompts = (RAGGED, EQUAL)[number // 2 % 2]
        yield case(
            "constrained",
            settings,
            prompts,
            end=ENDS[number // 3 % 3],
            model=("gpt2", "gpt2-untied")[number % 2],
        )
    # Words that the models like, so that the constraints are fulfilled early and sequences end.
    liked = {"gpt2": [[[29]], [[19, 29]], [[29], [4]]], "gpt2-untied": [[[14]], [[23, 14]], [[[14], [23]]]]}
    for (model, lists), end, early in itertools.product(liked.items(), ([18], [35, 18]), (False, True)):
        for words in lists:
            settings = {"num_beams": 6, "num_return_sequences": 3, "early_stopping": early}
            yield case("constrained", {**settings, "force_words_ids": words}, EQUAL, end=end, model=model)
    # The phrase stands in the first two prompts, so that transformers does not ask for it again.
    settings = {"num_beams": 4, "force_words_ids": [[14, 15]]}
    yield case("constrained", settings, [[3, 14, 15], [14, 15, 9], [9, 2, 6]])


def every_case() -> Iterator[Case]:
    return itertools.chain(plain(), group_beams(), contrastive(), dola(), constrained())
