"""Models with random weights in the shapes of real models, for measurements of time and memory."""

from typing import Any

import torch
import transformers
from record import SEED

# The initial range is wide enough for different probabilities of the tokens.
_GPT2 = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.05}
# Published sizes of each model; S is a small model.
CONFIGS: dict[str, dict[str, Any]] = {
    "S": {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096},
    "L": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "GPT-2 124M": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "GPT-2 XL": {"n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257},
    "Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}
_SMALL_GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 4096}
_SMALL_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


def config_of(name: str, *, quick: bool) -> transformers.PretrainedConfig:
    """The configuration of a shape; for a quick run, a small one of the same architecture."""
    numbers = CONFIGS[name]
    if "hidden_size" in numbers:
        small = _SMALL_LLAMA if quick else {}
        return transformers.LlamaConfig(**numbers | small, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2Config(**(_SMALL_GPT2 if quick else numbers), n_positions=1024, **_GPT2)


def make(name: str, device: str, dtype: torch.dtype, *, quick: bool = False) -> Any:  # noqa: ANN401 - of transformers
    """A model with random weights, created on its device.

    Args:
        name: A shape of `CONFIGS`.
        device: "cpu" or "cuda".
        dtype: Precision of the weights.
        quick: True for a small model.
    """
    torch.manual_seed(SEED)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config_of(name, quick=quick), dtype=dtype)
    return model.eval()


def described(name: str, dtype: torch.dtype, *, quick: bool = False) -> str:
    """A description of the shape, for the JSON file."""
    config = config_of(name, quick=quick)
    sizes = f"{config.num_hidden_layers} layers x {config.hidden_size}, vocabulary {config.vocab_size}"
    return f"random {config.model_type}, {sizes}, {str(dtype).removeprefix('torch.')}"
