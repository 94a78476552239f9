"""Models by name, and the one that comes with the package."""

from importlib.resources import files
from pathlib import Path

import torch

from decodekit.models.hf import HFModel
from decodekit.models.pretrained import without_progress_bar

BUNDLED = "fairytales"


def bundled_path() -> Path:
    """The folder of the bundled language model, which transformers can load by itself.

    Example:
        >>> sorted(path.name for path in dk.bundled_path().glob("*.safetensors"))
        ['model.safetensors']
    """
    return Path(str(files("decodekit") / "assets" / BUNDLED))


def load(
    name: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> HFModel:
    """Loads a model and its tokenizer through transformers: safetensors only, no remote code.

    Args:
        name: A folder, or a name on the hub or in its local cache; None is the bundled model, which
            works offline.
        device: Where to put it.
        dtype: Its precision; None: as the checkpoint's configuration says.

    Raises:
        ModelError: If there is no such model, or it is not a language model.

    Example:
        >>> dk.load()
        HFModel(GPT2LMHeadModel, float32 on cpu, cache=rows)

    Hugging Face:
        `AutoModelForCausalLM.from_pretrained(name)` and `AutoTokenizer.from_pretrained(name)`.
    """
    if name is not None:
        return HFModel.from_pretrained(name, device=device, dtype=dtype)
    with without_progress_bar():  # it takes a blink
        return HFModel.from_pretrained(bundled_path(), device=device, dtype=dtype)
