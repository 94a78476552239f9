# ruff: noqa: INP001 - loaded by its path, not imported
"""Tables and pictures of every benchmark except the comparison with other libraries."""

from collections.abc import Iterator
from typing import Any

from bars import bars
from cells import Record, floor_of, machine, met, milliseconds, spread, table


def against_generate(run: Record) -> str:
    """Times and peak memory."""
    floors = "floor_seconds" in run["work"][0]
    rows = []
    for work in run["work"]:
        medians, quartiles, memory = (
            work[key] for key in ("median_seconds", "quartiles_seconds", "peak_memory_mb")
        )
        rows.append(
            [
                work["name"],
                f"{work['prompts']} x {work['length']} + {work['new']}",
                *(spread(medians[who], quartiles[who], 3) for who in ("generate", "decodekit")),
                *([f"{work['floor_seconds']:.3f}"] if floors else []),
                f"**{work['ratio']:.2f}**",
                met(work["ratio"], work["bar"]),
                f"{memory['generate']:.0f} → {memory['decodekit']:.0f}",
            ]
        )
    head = ["workload", "prompts x tokens + new tokens", "`generate()`, s", "decodekit, s"]
    head += [*(["floor, s"] if floors else []), "ratio", "target", "peak memory, MB"]
    pictures = [
        bars(work["name"], work["median_seconds"] | _floor(work, "floor_seconds"), "s")
        for work in run["work"]
    ]
    first = f"{machine(run)}; {run['model']}; medians of {run['repeats']} runs, with quartiles:"
    return "\n".join([first, "", table(head, rows), "", *pictures])


def _floor(work: Record, key: str) -> dict[str, float]:
    return {"floor": work[key]} if key in work else {}


def processors(run: Record) -> str:
    """Milliseconds of every processor, for two vocabulary sizes."""
    vocabularies = list(run["cases"][0]["vocabularies"])
    head = ["processor (ms, transformers → decodekit)"]
    for vocab in vocabularies:
        head += [f"{int(vocab):,} tokens", "ratio"]
    rows = []
    for case in run["cases"]:
        few = "" if case["rows"] == run["rows"] else f", {case['rows']} rows"
        cells = [cell for vocab in vocabularies for cell in _cells(case["vocabularies"][vocab])]
        rows.append([f"`{case['name']}`{few}", *cells])
    size = f"{run['rows']} rows of {run['length']} tokens"
    floors = ", ".join(
        f"{milliseconds(value)} ms for {int(vocab):,} tokens"
        for vocab, value in run.get("floor_ms", {}).items()
    )
    floor = f" The floor, the time to read the scores once, is {floors}." if floors else ""
    first = f"{machine(run)}; {size}; medians of {run['repeats']} steps.{floor}"
    return "\n".join([first, "", table(head, rows)])


def _cells(found: dict[str, Any]) -> tuple[str, str]:
    medians = found["median_ms"]
    ours = milliseconds(medians["decodekit"])
    if "ratio" not in found:
        return ours, "-"
    return f"{milliseconds(medians['transformers'])} → {ours}", f"**{found['ratio']:.2f}**"


def step_without_model(run: Record) -> str:
    """Milliseconds of a step."""
    prompts, rows = run["rows"]
    size = f"{prompts} prompts with {rows} rows each, a vocabulary of {run['vocabulary']:,} tokens"
    runs = f"medians of {run['repeats']} runs of {run['steps']} steps, with quartiles"
    lines = []
    for work in run["work"]:
        medians, quartiles = work["median_ms"], work["quartiles_ms"]
        differs = "" if work.get("is_same", True) else " (the tokens differ)"
        lines.append(
            [
                work["name"] + differs,
                *(spread(medians[who], quartiles[who], 1) for who in ("transformers", "decodekit")),
                f"**{work['ratio']:.2f}**",
                met(work["ratio"], work["bar"]),
            ]
        )
    return "\n".join(
        [
            f"{machine(run)}; {size}; {runs}.{floor_of(run, 'floor_ms', 'ms')}",
            "",
            table(["milliseconds per step", "transformers", "decodekit", "ratio", "target"], lines),
            "",
            *(bars(work["name"], work["median_ms"] | _floor(run, "floor_ms"), "ms") for work in run["work"]),
        ]
    )


def throughput(run: Record) -> str:
    """Seconds for a long list of prompts."""
    rows = [
        [
            f"`{row['name']}`",
            spread(row["median_s"], row["quartiles_s"], 1),
            f"{row['tokens_per_s']:.0f}",
            f"**{row['ratio']:.2f}**",
            met(row["ratio"], row["bar"]),
            f"{row['same_texts']} of {run['prompts']}",
        ]
        for row in run["runs"]
    ]
    times = {row["name"]: row["median_s"] for row in run["runs"]} | _floor(run, "floor_s")
    first = f"{machine(run)}; {run['prompts']} prompts; medians of {run['repeats']} runs, with quartiles."
    return "\n".join(
        [
            f"{first}{floor_of(run, 'floor_s', 's')}",
            "",
            table(["library", "seconds", "new tokens per second", "ratio", "target", "same texts"], rows),
            "",
            bars(f"{run['prompts']} prompts", times, "s"),
        ]
    )


def packed_linear(run: Record) -> str:
    """Times of calls, of the first use, and of whole runs."""
    ways = list(run["calls"][0]["median_ms"])
    floors = run.get("floor_ms", {})
    calls = [
        [
            f"{call['in']} x {call['out']}",
            str(call["rows"]),
            *(milliseconds(call["median_ms"][way]) for way in ways),
            *([milliseconds(floors[f"{call['in']} x {call['out']}"])] if floors else []),
            f"**{call['ratio']:.2f}**",
        ]
        for call in run["calls"]
    ]
    names = [f"`{way}`" for way in ways]
    first = [
        [shape, *(milliseconds(times[way]) for way in ways)] for shape, times in run["first_use_ms"].items()
    ]
    floor = ["floor"] if floors else []
    return "\n".join(
        [
            f"{machine(run)}; {run['clock']}; medians of {run['repeats']} calls, in milliseconds:",
            "",
            table(["layer", "rows", *names, *floor, "packed / `F.linear`"], calls),
            "",
            table(["first use of a layer, in milliseconds", *names], first),
            "",
            _packing(run["model"]),
            "",
            table(
                ["workload", "plain, s", "packed, s", "floor, s", "ratio", "same tokens"], _whole_runs(run)
            ),
            "",
            *_pictures_of_layers(run),
        ]
    )


def _packing(model: Record) -> str:
    size = f"{model['bytes'] / 1e6:.0f} MB"
    return f"{model['name']}; packing took {model['pack_s']:.2f} s, and the copies take {size}:"


def _whole_runs(run: Record) -> Iterator[list[str]]:
    for work in run["model"]["runs"]:
        medians, floor = work["median_s"], work.get("floor_s")
        yield [
            work["work"],
            *(f"{medians[way]:.2f}" for way in ("plain", "packed")),
            "-" if floor is None else f"{floor:.2f}",
            f"**{work['ratio']:.2f}**",
            "yes" if work["same_tokens"] else "no",
        ]


def _pictures_of_layers(run: Record) -> Iterator[str]:
    """Pictures for a few rows, the purpose of packing."""
    few = 5
    for call in run["calls"]:
        if call["rows"] == few:
            shape = f"{call['in']} x {call['out']}"
            times = call["median_ms"] | ({"floor": run["floor_ms"][shape]} if "floor_ms" in run else {})
            yield bars(f"{shape}, {few} rows", times, "ms", ours="packed")
    for work in run["model"]["runs"]:
        times = work["median_s"] | _floor(work, "floor_s")
        yield bars(f"{run['model']['name']}, {work['work']}", times, "s", ours="packed")


def translation(run: Record) -> str:
    """Quality and cost of every decoder."""
    first = run["strategies"][0]
    said = f"{run['sentences']} sentences with {run['references']} reference translations"
    worth = f"mean log-probability of the first references: {run['reference_mean_log_prob']:.2f} nats"
    rows = [
        [
            row["name"],
            *(f"{row[name]['score']:.1f} ± {row[name]['interval']:.1f}" for name in ("chrf", "bleu")),
            f"{row['bleu']['length_ratio']:.2f}",
            f"{row['mean_log_prob']:.2f}",
            spread(row["median_s"], row["quartiles_s"], 1),
        ]
        for row in run["strategies"]
    ]
    signatures = " and ".join(f"`{first[name]['signature']}`" for name in ("chrf", "bleu"))
    return "\n".join(
        [
            f"{machine(run)}; {said}; {worth}.",
            "",
            table(["decoder", "chrF", "BLEU", "length", "log-probability", "seconds"], rows),
            "",
            f"Signatures of sacrebleu: {signatures}.",
        ]
    )


def decoders(run: Record) -> str:
    """Results of every decoder, with the language model and with the translation model."""
    parts = [
        f"{machine(run)}; {run['openings']} openings of stories, {run['new']} new tokens:",
        "",
        _found(run, "stories"),
    ]
    if run["sentences"]:
        parts += ["", f"{run['sentences']} held-out sentences, translated:", "", _found(run, "translation")]
    return "\n".join(parts)


def _found(run: Record, part: str) -> str:
    """Results of every decoder with one of the models."""
    columns = [
        ("log-prob per token", "log_prob_per_token", 2),
        ("distinct-1", "distinct_1", 2),
        ("distinct-2", "distinct_2", 2),
        ("repetition", "repetition", 2),
        ("self-BLEU", "self_bleu", 0),
        *([("chrF", "chrf", 1)] if part == "translation" else []),
        ("passes per token", "passes_per_token", 1),
        ("time", "time", 1),
    ]
    rows = [
        [
            f"`{row['name']}`",
            *(
                "-" if row[part][key] is None else f"{row[part][key]:.{places}f}"
                for _, key, places in columns
            ),
        ]
        for row in run["decoders"]
        if row[part] is not None  # the decoder supports the model
    ]
    return table(["decoder", *(heading for heading, _, _ in columns)], rows)


def pictures_of_decoders(run: Record) -> str:
    """Time, distinct words and repetition of every decoder."""
    stories = {row["name"]: row["stories"] for row in run["decoders"]}
    return "\n".join(
        bars(title, {name: story[key] for name, story in stories.items()}, unit, ours="")
        for title, key, unit in (
            ("Stories: time, as a multiple of greedy search", "time", ""),
            ("Stories: fraction of distinct pairs of words", "distinct_2", ""),
            ("Stories: fraction of 4-grams that occurred before", "repetition", ""),
        )
    )


def where_time_goes(run: Record) -> str:
    """Parts of the time of each workload, and the floors of its linear layers."""
    parts = list(run["work"][0]["parts_seconds"])
    rows = [
        [
            work["name"],
            spread(work["median_seconds"], work["quartiles_seconds"]),
            *(f"{work['parts_seconds'][part]:.3f}" for part in parts),
            "{reading:.3f} / {multiplying:.3f}".format(**work["floor_seconds"]),
        ]
        for work in run["work"]
    ]
    head = ["workload", "seconds", *parts, "floor of linear layers, reading / multiplying"]
    first = f"{machine(run)}; medians of {run['repeats']} runs, with quartiles, in seconds:"
    pictures = [bars(work["name"], _with_floor(work), "s", ours="linear") for work in run["work"]]
    return "\n".join([first, "", table(head, rows), "", *pictures])


def _with_floor(work: Record) -> dict[str, float]:
    """The parts of a workload, with the floor after the linear layers."""
    shown: dict[str, float] = {}
    for part, seconds in work["parts_seconds"].items():
        shown[part] = seconds
        if part == "linear layers":
            shown["floor"] = max(work["floor_seconds"].values())
    return shown
