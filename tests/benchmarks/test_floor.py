import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.scripts import script

FLOOR = script("floor")


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=64, vocab_size=10))


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=10,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def test_a_step_reads_all_weights_but_tables_of_which_it_looks_up_rows() -> None:
    model = gpt2()
    every = sum(weight.numel() for weight in model.parameters())
    assert FLOOR.bytes_a_step(model) == 4 * (every - 64 * 8)  # positions; the words are the head, too
    model = llama()
    every = sum(weight.numel() for weight in model.parameters())
    assert FLOOR.bytes_a_step(model) == 2 * (every - 10 * 8)  # the words


def test_keys_and_values_are_those_of_the_heads_that_have_some() -> None:
    assert FLOOR.bytes_a_token(gpt2()) == 2 * 2 * 8 * 4
    assert FLOOR.bytes_a_token(llama()) == 2 * 2 * (2 * 2) * 2  # two heads, two wide, in two bytes


def test_the_bytes_are_counted_by_hand() -> None:
    model = gpt2()
    weights, token = FLOOR.bytes_a_step(model), FLOOR.bytes_a_token(model)
    # Three steps: the prompt of 5 tokens has no keys yet, then there are those of 6 tokens, then of 7.
    assert FLOOR.bytes_read(model, [(5, 3)]) == 3 * weights + (6 + 7) * token
    # Another prompt of 2 tokens, with two steps.
    assert FLOOR.bytes_read(model, iter([(5, 3), (2, 2)])) == 3 * weights + (6 + 7 + 3) * token


def test_the_bandwidth_is_that_of_the_best_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FLOOR._BYTES, "cpu", 4096)
    seconds = iter([3.0, 2.0, 0.5, 9.0, 9.0, 9.0, 9.0, 9.0])
    monkeypatch.setattr(FLOOR, "timed", lambda *_: next(seconds))
    assert FLOOR.bandwidth() == 4096 / 0.5


@pytest.mark.slow
def test_multiplications_are_those_of_the_fastest_product() -> None:
    ticks = iter([0.0, 3.0, 3.0, 5.0, 5.0, 6.0, 6.0, 8.0, 8.0, 12.0])
    assert FLOOR.multiplications("cpu", lambda: next(ticks)) == 2048**3
