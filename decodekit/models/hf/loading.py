"""Loading of models, bundled or through transformers."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from decodekit.core.validation import checked_options, shown
from decodekit.core.vocabulary import Tokenizer
from decodekit.errors import ModelError
from decodekit.models.hf.model import HFModel

BUNDLED = ("fairytales", "en-fr")


@checked_options
def bundled_path(name: str = "fairytales") -> Path:
    """The folder of a bundled model, which transformers can load as well.

    Args:
        name: `"fairytales"`, a language model, or `"en-fr"`, which translates English into French.

    Raises:
        ValueError: If no model of that name is bundled.

    Example:
        >>> sorted(path.name for path in dk.bundled_path().glob("*.safetensors"))
        ['model.safetensors']
    """
    if name not in BUNDLED:
        known = " or ".join(repr(one) for one in BUNDLED)
        raise ValueError(
            f"bundled_path: name must be {known}, got {shown(name)}. dk.load reads other models."
        )
    return Path(str(files("decodekit") / "assets" / name))


@checked_options
def load(
    name: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> HFModel:
    """Loads a model and its tokenizer through transformers: safetensors only, no remote code.

    Args:
        name: `"fairytales"` or `"en-fr"`, which are bundled and work offline; a folder; or a name on the hub
            or in its local cache. None is `"fairytales"`. A folder with a bundled name is `"./en-fr"`.
        device: Its device.
        dtype: Its precision; None: as in the checkpoint's configuration.

    Raises:
        ModelError: If there is no such model, or it is not a language model.

    Example:
        >>> dk.load()  # doctest: +ELLIPSIS
        HFModel(GPT2LMHeadModel, float32 on cpu, cache=auto...)

    Hugging Face:
        `AutoModelForCausalLM.from_pretrained(name)`, `AutoModelForSeq2SeqLM.from_pretrained(name)` for an
        encoder-decoder, and `AutoTokenizer.from_pretrained(name)`.
    """
    if name is None:
        name = BUNDLED[0]
    is_bundled = name in BUNDLED  # never true for a Path
    path = bundled_path(str(name)) if is_bundled else name
    with without_progress_bar() if is_bundled else nullcontext():  # a bundled model loads at once
        model, tokenizer = _load_pretrained(path, device=device, dtype=dtype)
    return HFModel(model, tokenizer)


def _load_pretrained(
    name: str | Path, *, device: str | torch.device, dtype: torch.dtype | None
) -> tuple[Any, Tokenizer | None]:
    """The model in evaluation mode, and its tokenizer if it has one."""
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
        # Read first: some encoder-decoders can also be loaded as decoder-only models, without their encoder.
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
        tokenizer = None  # a prompt that is a string is then refused, with the reason
    return model.to(device).eval(), tokenizer


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Turns off the progress bar of transformers; restores it afterwards."""
    from transformers.utils import logging  # noqa: PLC0415 - slow, needed only here

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
