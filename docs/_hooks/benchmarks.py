# ruff: noqa: INP001 - loaded by its path, not imported
"""Benchmark tables, made from the recorded runs: no number is copied by hand."""

import importlib.util
import json
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_SPEC = importlib.util.spec_from_file_location("bars", Path(__file__).with_name("bars.py"))
_MODULE = importlib.util.module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(_MODULE)  # type: ignore[union-attr]
bars = _MODULE.bars


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 - the signature of mkdocs
    """Replaces each marker by the table of the recorded run, if there is one."""
    for name, table in (
        ("against_generate", _against_generate),
        ("processors", _processors),
        ("step_without_model", _step_without_model),
        ("peers_cpu", _peers),
        ("translation", _translation),
        ("decoders", _decoders),
    ):
        marker, path = f"<!-- {name} -->", _RESULTS / f"{name}.json"
        if marker in markdown:
            found = table(json.loads(path.read_text())) if path.exists() else "No run is recorded yet."
            markdown = markdown.replace(marker, found)
    return markdown


def _machine(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"{run['date']}, {run['device']}, {versions}"


def _against_generate(run: dict[str, Any]) -> str:
    lines = [
        f"{_machine(run)}; {run['model']}; medians of {run['repeats']} runs:",
        "",
        "| work | prompts of tokens + new | `generate()` | decodekit | ratio | at most | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in run["work"]:
        seconds, memory = work["median_seconds"], work["peak_memory_mb"]
        lines.append(
            f"| {work['name']} | {work['prompts']} of {work['length']} + {work['new']} "
            f"| {seconds['generate']:.3f} s | {seconds['decodekit']:.3f} s "
            f"| **{work['ratio']:.2f}** | {work['bar']:.2f} "
            f"| {memory['generate']:.0f} → {memory['decodekit']:.0f} |"
        )
    return "\n".join(lines)


def _processors(record: dict[str, Any]) -> str:
    return "\n\n".join(_processors_on(run) for run in record.values())


def _processors_on(run: dict[str, Any]) -> str:
    vocabularies = list(run["cases"][0]["vocabularies"])
    head = " | ".join(f"{int(vocab):,} tokens | ratio" for vocab in vocabularies)
    lines = [
        f"{_machine(run)}; {run['rows']} rows of {run['length']} tokens; medians of {run['repeats']} steps:",
        "",
        f"| processor, milliseconds: transformers → decodekit | {head} |",
        "|---|" + "---|---|" * len(vocabularies),
    ]
    for case in run["cases"]:
        rows = "" if case["rows"] == run["rows"] else f", {case['rows']} rows"
        cells = " | ".join(_cells(case["vocabularies"][vocab]) for vocab in vocabularies)
        lines.append(f"| `{case['name']}`{rows} | {cells} |")
    return "\n".join(lines)


def _step_without_model(record: dict[str, Any]) -> str:
    return "\n\n".join(_steps_on(run) for run in record.values())


def _steps_on(run: dict[str, Any]) -> str:
    prompts, rows = run["rows"]
    size = f"{prompts} prompts, {rows} rows of each, {run['vocabulary']:,} tokens to choose from"
    lines = [
        f"{_machine(run)}; {size}; medians of {run['repeats']} runs of {run['steps']} steps:",
        "",
        "| milliseconds a step | transformers | decodekit | ratio | at most |",
        "|---|---|---|---|---|",
    ]
    for work in run["work"]:
        theirs, ours = (_milliseconds(work["median_ms"][name]) for name in ("transformers", "decodekit"))
        bar = "" if work["bar"] is None else f"{work['bar']:.2f}"
        lines.append(f"| {work['name']} | {theirs} | {ours} | **{work['ratio']:.2f}** | {bar} |")
    return "\n".join(lines)


def _peers(run: dict[str, Any]) -> str:
    """A table of all, and a picture of each."""
    note = f"; {run['note']}" if run["note"] else ""
    models = "random GPT-2 in float32, S: 4 layers x 256, L: 12 x 768"
    lines = [
        f"{_machine(run)}; {models}; medians of {run['repeats']} runs{note}:",
        "",
        "| seconds | `generate()` | CTranslate2 | decodekit | floor | ratios (at most) | cache (at most) |",
        "|---|---|---|---|---|---|---|",
    ]
    pictures = []
    for work in run["work"]:
        seconds = work["median_seconds"]
        times = [f"{seconds[peer]:.2f}" if peer in seconds else "-" for peer in ("generate", "ctranslate2")]
        ratios = ", ".join(
            f"{peer} **{work['ratios'][peer]:.2f}** ({bar:.2f})"
            for peer, bar in work["bars"].items()
            if peer in work["ratios"]
        )
        most = "" if work["cache_bar"] is None else f" ({work['cache_bar']:.2f})"
        times += [f"{seconds['decodekit']:.2f}", f"{work['floor_seconds']:.2f}"]
        lines.append(f"| {work['name']} | {' | '.join(times)} | {ratios} | {work['cache_ratio']:.2f}{most} |")
        pictures.append(bars(work["name"], seconds | {"floor": work["floor_seconds"]}, "s"))
    return "\n".join([*lines, "", *pictures])


def _translation(run: dict[str, Any]) -> str:
    first = run["strategies"][0]
    said = f"{run['sentences']} sentences with {run['references']} reference translations"
    worth = f"the first ones of which have {run['reference_mean_log_prob']:.2f} nats in the mean"
    lines = [
        f"{_machine(run)}; {said}, {worth}:",
        "",
        "| decoder | chrF | BLEU | length | log-probability | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in run["strategies"]:
        chrf, bleu = (f"{row[name]['score']:.1f} ± {row[name]['interval']:.1f}" for name in ("chrf", "bleu"))
        lines.append(
            f"| {row['name']} | {chrf} | {bleu} | {row['bleu']['length_ratio']:.2f} "
            f"| {row['mean_log_prob']:.2f} | {row['seconds']:.1f} |"
        )
    signatures = " and ".join(f"`{first[name]['signature']}`" for name in ("chrf", "bleu"))
    return "\n".join([*lines, "", f"sacrebleu's signatures: {signatures}."])


def _decoders(run: dict[str, Any]) -> str:
    parts = [
        f"{_machine(run)}; {run['openings']} openings of stories, {run['new']} new tokens:",
        "",
        _found(run, "stories"),
    ]
    if run["sentences"]:
        parts += ["", f"{run['sentences']} held-out sentences, translated:", "", _found(run, "translation")]
    return "\n".join(parts)


def _found(run: dict[str, Any], part: str) -> str:
    """What each decoder found with one of the models."""
    columns = [
        ("log-prob a token", "log_prob_per_token", 2),
        ("distinct-1", "distinct_1", 2),
        ("distinct-2", "distinct_2", 2),
        ("repetition", "repetition", 2),
        ("self-BLEU", "self_bleu", 0),
        *([("chrF", "chrf", 1)] if part == "translation" else []),
        ("passes a token", "passes_per_token", 1),
        ("time", "time", 1),
    ]
    lines = [
        f"| decoder | {' | '.join(heading for heading, _, _ in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for row in run["decoders"]:
        if row[part] is None:  # it cannot decode such a model
            continue
        cells = [
            "-" if row[part][key] is None else f"{row[part][key]:.{places}f}" for _, key, places in columns
        ]
        lines.append(f"| `{row['name']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(found: dict[str, Any]) -> str:
    medians = found["median_ms"]
    ours = _milliseconds(medians["decodekit"])
    if "ratio" not in found:
        return f"{ours} | -"
    return f"{_milliseconds(medians['transformers'])} → {ours} | **{found['ratio']:.2f}**"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004 - about three digits
