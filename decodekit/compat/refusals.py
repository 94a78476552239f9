"""Options of `generate` that decodekit lacks: an error names them, none is ignored."""

from collections.abc import Mapping
from typing import Any

from decodekit.core.validation import shown
from decodekit.errors import DecodekitError

# Values without effect, and advice for any other value.
_OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "assistant_early_exit": ((None,), "It drafts for assisted generation."),
    "assistant_ensemble_weight": ((None,), "It is for assisted generation."),
    "cache_config": ((None,), "decodekit makes its own cache."),
    "cache_implementation": ((None, "dynamic"), "decodekit makes its own cache."),
    "compile_config": ((None,), "The forward pass is not compiled."),
    "constraints": ((None,), "transformers 5 has moved constrained beam search to the hub."),
    "continuous_batching_config": ((None,), "Use dk.decode with batch_tokens."),
    "diversity_penalty": ((None, 0.0), "transformers 5 has moved diverse beam search to the hub."),
    "dola_layers": ((None,), "transformers 5 has moved DoLa to the hub."),
    "force_words_ids": ((None,), "transformers 5 has moved constrained beam search to the hub."),
    "is_assistant": ((None, False), "It is for the draft model of assisted generation."),
    "low_memory": ((None, False), "transformers 5 has removed it."),
    "max_cache_len": ((None,), "decodekit makes its own cache."),
    "num_beam_groups": ((None, 1), "transformers 5 has moved diverse beam search to the hub."),
    "output_attentions": ((None, False), "Attentions are not kept. Call the model on the sequences."),
    "output_hidden_states": ((None, False), "Hidden states are not kept. Call the model on the sequences."),
    "penalty_alpha": ((None, 0, 0.0), "transformers 5 has moved contrastive search to the hub."),
    "prefill_chunk_size": ((None,), "Prompts are computed in one pass."),
    "prompt_lookup_num_tokens": ((None,), "It is for assisted generation."),
    "speculation_type": ((None,), "It is for assisted generation."),
    "token_healing": ((None, False), "Use dk.heal, which needs no second search."),
    "use_mtp": ((None, False), "It is for assisted generation."),
}


def refuse_options(config: Any) -> None:
    """Raise if the configuration sets an unsupported option; the message names it."""
    for name, (nothing, instead) in _OPTIONS.items():
        value = getattr(config, name, None)
        if not any(value is one or (type(value) is type(one) and value == one) for one in nothing):
            raise DecodekitError(f"generate: {name} is not supported, got {shown(value)}. {instead}")


def refuse_arguments(arguments: Mapping[str, Any], instead: str) -> None:
    """Raises if one of the arguments is given."""
    for name, value in arguments.items():
        if value is not None:
            raise DecodekitError(f"generate: {name} is not supported, got {shown(value)}. {instead}")
