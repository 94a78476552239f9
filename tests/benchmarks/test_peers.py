"""What `benchmarks/peers.py` measures, in small."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benchmarks.scripts import script

SCRIPT, CONTENDERS, WORKS = script("peers"), script("contenders"), script("works")
COMPILING, VLLM, MODELS = script("compiling"), script("in_vllm"), script("random_models")


def make_bench(model: str = "S", dtype: torch.dtype = torch.float32, **options: Any) -> Any:  # noqa: ANN401
    """Everybody, around a small model."""
    return CONTENDERS.Bench(model, "cpu", dtype, torch.get_num_threads(), quick=True, **options)


@pytest.mark.parametrize("work", WORKS.CPU_WORKS + WORKS.CUDA_WORKS, ids=lambda work: work.name)
def test_everybody_says_the_same(work: Any) -> None:  # noqa: ANN401
    bench, small = make_bench(work.model), replace(work, prompts=2, length=5, new=6)
    expected = bench.run_of("generate", small)()
    assert bench.run_of("decodekit", small)() == expected
    assert len(expected) == 2 * max(work.samples, 1)
    is_known = "Llama" not in work.model and not work.samples
    if is_known and find_spec("ctranslate2") is not None:
        assert bench.run_of("ctranslate2", small)() == expected
    else:
        assert bench.run_of("ctranslate2", small) is None
    assert bench.run_of("vllm", small) is None


def test_the_models_have_the_public_numbers() -> None:
    sizes = {"GPT-2 124M": 124_439_808, "GPT-2 XL": 1_557_611_200, "Llama-3-8B": 8_030_261_248}
    for name, size in sizes.items():
        model = MODELS.make(name, "meta", torch.bfloat16)
        assert sum(weight.numel() for weight in model.parameters()) == size
        assert model.dtype == torch.bfloat16
        assert "bfloat16" in MODELS.described(name, torch.bfloat16)


def test_texts_that_differ_are_refused_in_float32_and_counted_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = replace(WORKS.CPU_WORKS[1], prompts=2, length=3, new=2)
    monkeypatch.setattr(CONTENDERS.Bench, "decode", lambda *_: [[0], [1]])
    with pytest.raises(SystemExit, match="the libraries return different tokens"):
        SCRIPT.measure(make_bench(), work, 1, compiled=False)
    said = {"generate": [[0], [2]], "decodekit": [[0], [1]]}
    same = SCRIPT.same_texts(make_bench(dtype=torch.bfloat16), work, said)
    assert same == {"generate": 1.0, "decodekit": 0.5}


def test_texts_of_other_weights_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONTENDERS.Bench, "vllm_weights_are_its_own", True)
    said = {"generate": [[0]], "decodekit": [[0]], "vllm": [[0]]}
    assert SCRIPT.same_texts(make_bench(), WORKS.CPU_WORKS[1], said)["vllm"] is None


def test_the_cache_is_counted_by_hand() -> None:
    work = replace(WORKS.CPU_WORKS[0], prompts=2, length=6, new=4, beams=3)
    token = 2 * 2 * 32 * 4  # keys and values of two layers, 32 wide, in float32
    found = SCRIPT.cache_bytes(make_bench(), work)
    assert found["generate"] == 6 * 9 * token
    # Room for all that may come: a prompt's columns and three slots a step, or some more.
    slots, rest = divmod(found["decodekit"], 2 * token)
    assert rest == 0
    assert 6 + 3 * 4 <= slots <= 64


@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["on the CPU", "on a GPU"])
def test_a_quick_run_has_every_work_of_the_device(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = WORKS.WORKS[device]
    monkeypatch.setattr(SCRIPT, "bandwidth", lambda _: 1e9)
    measured = {"generate": [8.0], "decodekit": [2.0]}
    monkeypatch.setattr(
        SCRIPT, "in_turns", lambda runs, *_: {name: measured.get(name, [4.0]) for name in runs}
    )
    out = tmp_path / "results.json"
    SCRIPT.main(threads=torch.get_num_threads(), device=device, note="small", quick=True, out=out)
    record = json.loads(out.read_text())
    assert [work["name"] for work in record["work"]] == [work.in_small().name for work in works]
    assert record["models"].keys() == {work.model for work in works}
    assert record["captured"]
    found = record["work"][0]
    assert {"generate": 8.0, "decodekit": 2.0}.items() <= found["median_seconds"].items()
    assert found["ratio"] == found["ratios"]["generate"] == 0.25
    assert found["quartiles_seconds"]["generate"] == [8.0, 8.0]
    assert found["floor_seconds"] > 0
    assert 0 <= found["same_texts"]["decodekit"] <= 1


def test_steps_are_compiled_and_prompts_are_not() -> None:
    bench, work, lengths = make_bench(), replace(WORKS.CPU_WORKS[1], prompts=2, length=5, new=4), []
    plain = bench.model.forward

    def step(*args: Any, **given: Any) -> Any:  # noqa: ANN401
        lengths.append(given["input_ids"].shape[1])
        return plain(*args, **given)

    with COMPILING.compiled_steps(bench.model, step):
        texts = bench.generate(work, bench.prompts(work), cache_implementation="static")
    assert lengths == [1, 1, 1]  # after the prompt
    assert texts == bench.run_of("generate", work)()
    assert len(lengths) == 3
    assert bench.model.forward == plain


def test_a_captured_step_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(CONTENDERS.dk, "decode", lambda *_, **options: given.update(options))
    bench = make_bench(capture=True)
    with pytest.raises(AttributeError):  # nothing was decoded
        bench.decode(WORKS.CPU_WORKS[1], torch.tensor([[1]]))
    assert given["capture"] is True


@pytest.mark.parametrize("most", [0, 1e12], ids=["a large model", "a small model"])
def test_vllm_searches_with_the_works_beams_and_no_end(most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def __init__(self, folder: str, **options: object) -> None:
            assert (Path(folder) / "config.json").exists()
            self.options = options

        def beam_search(self, prompts: list[dict[str, list[int]]], params: SimpleNamespace) -> list[Any]:
            assert (params.beam_width, params.max_tokens, params.ignore_eos) == (3, 2, True)
            texts = [prompt["prompt_token_ids"] + [7, 8] for prompt in prompts]
            return [SimpleNamespace(sequences=[SimpleNamespace(tokens=text)]) for text in texts]

        def generate(
            self, prompts: list[Any], params: SimpleNamespace, *, use_tqdm: bool
        ) -> list[SimpleNamespace]:
            assert (params.temperature, params.ignore_eos, use_tqdm) == (0.0, True, False)
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(5, 6))]) for _ in prompts]

    fake = SimpleNamespace(LLM=Engine, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    params = SimpleNamespace(BeamSearchParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    monkeypatch.setattr(VLLM, "MOST_BYTES", most)
    engine = VLLM.Engine(make_bench().model)
    assert engine.is_dummy == (most == 0)
    assert engine._engine.options["load_format"] == ("dummy" if most == 0 else "auto")
    assert engine._engine.options["dtype"] == "float32"
    work = replace(WORKS.CPU_WORKS[1], prompts=2, length=2, new=2, beams=3)
    assert engine.run_of(work, [[1, 2], [3, 4]])() == [[7, 8]] * 2
    assert engine.run_of(replace(work, beams=1), [[1, 2]])() == [[5, 6]]


@pytest.mark.parametrize("with_weights", [True, False])
def test_vllm_gets_the_model_with_a_tokenizer(with_weights: bool, tmp_path: Path) -> None:  # noqa: FBT001
    from transformers import AutoTokenizer  # noqa: PLC0415

    bench = make_bench("Llama-3-8B")
    VLLM.save(bench.model, tmp_path, with_weights=with_weights)
    assert (tmp_path / "model.safetensors").exists() == with_weights
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.eos_token_id, len(tokenizer)) == (0, bench.model.config.vocab_size)
