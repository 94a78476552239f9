"""Models and tokenizers from a folder or the hub, through transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from decodekit.core.vocabulary import Tokenizer
from decodekit.errors import ModelError


def load_pretrained(
    name: str | Path, *, device: str | torch.device, dtype: torch.dtype | None
) -> tuple[Any, Tokenizer | None]:
    """The model, on its device and ready to decode, and its tokenizer if it has one."""
    from safetensors import SafetensorError  # noqa: PLC0415 - needed only here
    from transformers import (  # noqa: PLC0415 - slow
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(
            f"load: device must be one that this machine has, got {str(device)!r}. Try device='cpu'."
        ) from error
    options = {"trust_remote_code": False}
    try:
        # Asked first: some encoder-decoders also load, half of them, as decoder-only models.
        config = AutoConfig.from_pretrained(name, **options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(
            name, use_safetensors=True, dtype="auto" if dtype is None else dtype, **options
        )
    except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"load: {str(name)!r} must be a language model in a folder, in the local cache "
            f"or on the hub, and transformers says: {str(error).splitlines()[0]} "
            "dk.load() without a name is the bundled language model."
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError):
        tokenizer = None  # a string as a prompt is then refused, with the reason
    return model.to(device).eval(), tokenizer


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside, transformers loads weights without drawing a bar; after, it is as it was."""
    from transformers.utils import logging  # noqa: PLC0415 - slow, needed only here

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
