"""What a transformers model gives to texts that are known, in one forward pass."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from decodekit.core.prompt import Prompt
from decodekit.models.hf.sessions import Forward, positions


def teacher_forced(
    model: Forward, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: Int64[Tensor, " rows"]
) -> Float32[Tensor, "rows new"]:
    """The log-probability of every token after its prompt and the tokens before it; 0 from `lengths` on."""
    new = tokens.shape[1]
    said = torch.arange(new, device=tokens.device) < lengths[:, None]
    # The last token predicts nothing. Junk after a row's end is to the right of all that counts.
    tokens = tokens.masked_fill(~said, 0)
    mask = torch.cat([prompt.mask, torch.ones_like(said[:, 1:])], 1)
    text = torch.cat([prompt.tokens.masked_fill(~prompt.mask, 0), tokens[:, :-1]], 1)
    logits = model.forward(text, mask, positions(mask), cache=None, keep=new).logits[:, -new:]
    # Row by row: a float32 copy of all rows' distributions at once could be the largest tensor.
    log_probs = torch.stack(
        [
            -nn.functional.cross_entropy(row.float(), row_tokens, reduction="none")
            for row, row_tokens in zip(logits, tokens, strict=True)
        ]
    )
    return log_probs.masked_fill(~said, 0.0)
