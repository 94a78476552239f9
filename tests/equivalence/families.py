"""Tiny random models of many families.

Nothing is downloaded. The weights are random, and scaled up so that the distributions have favourites
and beams disagree. In float64 two ways to compute the same logits agree to about 1e-14, so that rounding
does not choose between two tokens, and token ids can be compared exactly.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import decodekit as dk

VOCAB = 37
BOS, END, PAD = 1, 2, 3  # the pad id is not 0: what generate does with that is in test_deviations
START = 4  # an encoder-decoder's decoder begins with it
ENDS = (END, 7)
FIRST_TEXT_ID = 8  # prompts hold no special token
POSITIONS = 64
WINDOW = 8  # of attention, where a family has one: shorter than prompt and continuation together

# Matrices times 20 give 37 tokens an entropy of about 1.8 nats, half of what equal chances would.
SCALE = 20
# The end ids' own rows once more, so that about half of the hypotheses of a beam search end.
END_SCALE = 2

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
    # Tied, the scaled embeddings would make every token predict itself.
    "tie_word_embeddings": False,
}
_NAMES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_LLAMA: dict[str, Any] = {**_NAMES, "intermediate_size": 48, "num_key_value_heads": 2}
_GEMMA: dict[str, Any] = {
    **_LLAMA,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    # Their defaults; in test_encoder_decoder the models say by themselves when they end.
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}
_LED: dict[str, Any] = {
    **{name: value for name, value in _BART.items() if name != "max_position_embeddings"},
    "max_encoder_position_embeddings": POSITIONS,
    "max_decoder_position_embeddings": POSITIONS,
    "attention_window": 4,
}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}


@dataclass(frozen=True)
class Family:
    """One family, small.

    Attributes:
        config: Its configuration class in transformers.
        options: What differs from its defaults.
        attention: `"sdpa"` wherever there is one. Most eager implementations fill their mask with the
            dtype's lowest number and take the softmax in float32, where that of float64 is minus
            infinity: a row with left padding becomes NaN, in `generate` as well.
        dtype: float64, except where only such an eager implementation exists.
        scale: What every trained matrix is multiplied by.
        head_scale: What the output matrix is multiplied by once more.
        end_scale: What the end ids' rows of it are multiplied by once more.
        draw: Added to the seed: a draw of weights under which beams end and do not end.
    """

    config: str
    options: dict[str, Any]
    attention: str = "sdpa"
    dtype: torch.dtype = torch.float64
    scale: float = SCALE
    head_scale: float = 1
    end_scale: float = END_SCALE
    draw: int = 0


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2Config", _GPT),
    "llama": Family("LlamaConfig", _LLAMA),
    "mistral-window": Family("MistralConfig", {**_LLAMA, "sliding_window": WINDOW}),
    "qwen2": Family("Qwen2Config", _LLAMA),
    "qwen3": Family("Qwen3Config", {**_LLAMA, "head_dim": 8}),
    "gemma": Family("GemmaConfig", {**_LLAMA, "head_dim": 8}),
    "gemma2-mixed": Family("Gemma2Config", _GEMMA, attention="eager", dtype=torch.float32),
    "gemma3-mixed": Family("Gemma3TextConfig", _GEMMA),
    "phi": Family("PhiConfig", {**_LLAMA, "num_key_value_heads": 4}),
    "phi3": Family("Phi3Config", _LLAMA),
    "opt": Family("OPTConfig", {**_NAMES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-neox": Family("GPTNeoXConfig", {**_NAMES, "intermediate_size": 48}),
    "falcon-rotary": Family("FalconConfig", {**_NAMES, "alibi": False}),
    "falcon-alibi": Family("FalconConfig", {**_NAMES, "alibi": True}),
    "bloom": Family(
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        attention="eager",
        dtype=torch.float32,
    ),
    "mpt": Family(
        "MptConfig",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": POSITIONS},
        attention="eager",
        dtype=torch.float32,
    ),
    "gptj": Family("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "starcoder2": Family("Starcoder2Config", _LLAMA),
    "cohere": Family("CohereConfig", {**_LLAMA, "logit_scale": 1.0}),
    "olmo2": Family("Olmo2Config", _LLAMA),
    "mixtral": Family("MixtralConfig", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
}

# What reads the prompt, and what continues it, are two halves. Each has its own start, so that for each
# half of the hypotheses end, and another source makes another text.
_SCALED: dict[str, Any] = {**_BART, "scale_embedding": True}
ENCODER_DECODERS: dict[str, Family] = {
    "t5": Family("T5Config", _T5, scale=2, head_scale=0.3, draw=1),
    "mt5": Family("MT5Config", _T5, scale=2, head_scale=0.3),
    # It ties in any case; what the option says is whether the decoder's output is scaled as T5's is.
    "umt5": Family("UMT5Config", {**_T5, "tie_word_embeddings": True}, scale=4, draw=1),
    "bart": Family("BartConfig", _BART, scale=50, head_scale=0.5, end_scale=1.5, draw=1),
    "mbart": Family("MBartConfig", _BART, scale=30, end_scale=1.5, draw=1),
    "marian": Family("MarianConfig", _SCALED, scale=30),
    "pegasus": Family("PegasusConfig", _SCALED, scale=50, head_scale=0.5, end_scale=1.5),
    "m2m100": Family("M2M100Config", _BART, scale=50, head_scale=0.5, end_scale=1.5),
    "led-window": Family(
        "LEDConfig", _LED, attention="eager", scale=50, head_scale=0.5, end_scale=1.5, draw=2
    ),
}
ALL = {**FAMILIES, **ENCODER_DECODERS}


@cache
def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family, whose weights depend on the seed and on nothing else."""
    kind = ALL[family]
    start = {"decoder_start_token_id": START} if family in ENCODER_DECODERS else {}
    config = getattr(transformers, kind.config)(**{**_SHARED, **start, **kind.options})
    auto = transformers.AutoModelForSeq2SeqLM if start else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + kind.draw)
        model = auto.from_config(
            config,
            attn_implementation=kind.attention,
            experts_implementation="eager",  # the grouped matrix product of Mixtral has no float64
        )
    for weights in model.parameters():
        if weights.ndim > 1 and weights.requires_grad:  # not the sinusoids of positions
            weights.data.mul_(kind.scale)
    head = model.get_output_embeddings().weight.data
    head *= kind.head_scale
    head[list(ENDS)] *= kind.end_scale
    return model.to(kind.dtype).eval()


@cache
def wrap(family: str) -> dk.HFModel:
    """The same model as decodekit has it, probed once."""
    return dk.HFModel(build(family))
