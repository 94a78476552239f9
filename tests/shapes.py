"""Every decoder, processor and scorer once, with each shape in each signature checked as it runs.

Run in a process of its own by test_shapes: the checks are woven in when the modules are imported.
"""

import os
from typing import Any

import torch
from jaxtyping import install_import_hook

import tests.typechecker

# All but `testing`, whose hypothesis strategies have hints that cannot be checked.
CHECKED = [
    f"decodekit.{name}"
    for name in (
        *(
            "decoders",
            "drafts",
            "history",
            "limits",
            "loop",
            "memory",
            "models",
            "options",
            "output",
            "processors",
        ),
        *(
            "prompt",
            "rerank",
            "rng",
            "scorers",
            "scoring",
            "stopping",
            "streaming",
            "trace",
            "verifying",
            "vocabulary",
        ),
    )
]


def main() -> None:
    os.environ["EAGER_IMPORT"] = "1"  # everything while the hook is there
    with install_import_hook(CHECKED, f"{tests.typechecker.__name__}.check"):
        import decodekit as dk  # noqa: PLC0415 - after the hook
    model = dk.load()
    processors = [
        dk.RepetitionPenalty(1.2),
        dk.NoRepeatNGram(2),
        dk.MinNewTokens(2, end_ids=0),
        dk.SuppressTokens([5]),
        dk.Temperature(0.8),
        dk.TopK(50),
        dk.TopP(0.9),
        dk.MinP(0.01),
    ]
    some = dk.AnyOf(dk.EndIds(5), dk.StopWhen(lambda text: text.count(" ") > 8), dk.RepetitionLoop(3))
    stop = ["!", some, dk.MaxTime(60), dk.Confidence(1e-9) & dk.MaxNewTokens(9)]
    rules = (dk.WhenFull(), dk.Heuristic(), dk.Proved(), dk.Patience(2))
    for decoder in (
        dk.Greedy(),
        dk.Sample(3),
        dk.Sample(2, seeds=[1, 2]),
        dk.ArithmeticSample(2, seeds=[1, 2]),
        dk.StochasticBeamSearch(3, seeds=[1, 2]),
        dk.ConditionalPoissonBeams(2),
        *(dk.BeamSearch(3, stop_rule=rule, scorer=dk.LengthPenalty(1)) for rule in rules),
        dk.BeamSearch(2, scorer=dk.LogProb(), num_return=2),
        dk.BeamSearch(2, scorer=dk.CoveragePenalty(0.2)),
        dk.ContrastiveSearch(3),
        dk.DoLa(dk.BeamSearch(2), layers="high"),
    ):
        out = dk.decode(model, ["Once upon", "A"], decoder, processors, max_new_tokens=5, trace=2)
        dk.score(model, ["Once upon", "A"], out)
        list(dk.stream(model, ["Once upon", "A"], decoder, processors, stop=stop, max_new_tokens=5))
    for draft in (dk.DraftModel(model), dk.PromptLookup(), dk.EarlyExit(1)):
        sampled = dk.Speculative(draft, sample=True, num_samples=2, seeds=[1, 2])
        for decoder in (dk.Speculative(draft), sampled, dk.Speculative(draft, sample=True)):
            dk.decode(model, ["Once upon", "A"], decoder, processors, stop=stop, max_new_tokens=5)
    unique = dk.UniqueSample(2, seeds=[1, 2])
    out = dk.decode(model, ["Once upon", "A"], unique, processors, stop=stop, max_new_tokens=5)
    out.report.expectation(out.score, generator=torch.Generator())
    seeing = dk.BestFirst(scorer=dk.CoveragePenalty(0.2), max_nodes=3, num_return=2)
    for exact in (
        dk.BestFirst(beams=2),
        dk.BestFirst(at_once=2, max_nodes=5),
        dk.DepthFirst(max_nodes=5),
        seeing,
    ):
        dk.decode(model, ["Once upon", "A"], exact, processors, stop=stop, max_new_tokens=3)
    beams = dk.decode(model, ["Once upon", "A"], dk.StochasticBeamSearch(2), max_new_tokens=2)
    beams.report.estimate(beams.lengths, normalize=True)
    kept = dk.ConditionalPoissonBeams(2, keep=[texts[0] for texts in beams.hypotheses()])
    dk.decode(model, ["Once upon", "A"], kept, max_new_tokens=2)
    again = dk.HFModel(model.model, model.tokenizer, cache="none")
    dk.decode(again, ["Once upon", "A"], dk.Speculative(dk.PromptLookup()), max_new_tokens=3)
    toy = dk.testing.HashModel(5)
    dk.decode(toy, [[1], [1, 2]], dk.Speculative(dk.DraftModel(toy), sample=True), max_new_tokens=3)
    rerank(dk, model)
    try:
        dk.rng.draw(torch.rand(4))
    except Exception as error:  # noqa: BLE001 - jaxtyping's own kind
        print(type(error).__name__)  # noqa: T201 - read by the test


def rerank(dk: Any, model: Any) -> None:  # noqa: ANN401 - the package, imported with the hook there
    """Every way to choose among finished hypotheses."""
    prompts = ["Once upon", "A"]
    out = dk.decode(model, prompts, dk.Sample(5, seeds=[1, 2]), max_new_tokens=5)
    for utility in (dk.ChrF(), dk.BLEU(), dk.Cosine(lambda texts: [[len(text)] for text in texts])):
        for options in ({}, {"weights": "probability"}, {"aggregate": True}, {"pruning": dk.Pruning()}):
            dk.mbr(out, utility, **options)
    dk.mbr(out, lambda one, other: one == other)
    dk.self_consistency(out, len, weights="per_token")
    dk.best_of_n(out, len)
    dk.best_of_n(out, out.log_prob)
    dk.noisy_channel(out, dk.Channel(model, prompts), prior=dk.Prior(model, texts=True))
    dk.mmi_bidi(out, model)
    dk.mmi_antilm(out, model, first=2)


if __name__ == "__main__":
    main()
