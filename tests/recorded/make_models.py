"""Makes the tiny models of `model/` once, as the recordings need them.

Run with the project's own environment: `python -m tests.recorded.make_models`. The weights are committed, so
nobody has to run it again: another version of PyTorch may draw other numbers.

GPT-2 is random: matrices are wide (a standard deviation of 1), so that what comes next depends on everything
before, and embeddings are of one length, so that many tokens have their turn and no two are nearly tied.
Marian is trained a little. Weights are stored in half precision: every library loads the same numbers, in
whatever precision it computes.
"""

import sys
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
VOCAB = 40
PAD = 7  # not 0, which transformers takes for "none" in places
WIDTH = 16
LOGIT_SPREAD = 2.4  # times 4, the length of a normed state: logits have a standard deviation of 2.4
STEPS = 900


def spread_out(model: transformers.PreTrainedModel, std: float, seed: int) -> transformers.PreTrainedModel:
    """Draws every matrix, bias and gain anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # sinusoids, which are made anew when the model is loaded
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                gain = "weight" in name  # of a layer norm
                parameter.copy_(gain + 0.1 * noise)
            elif parameter.shape[0] == VOCAB:
                parameter.copy_(LOGIT_SPREAD * noise / noise.norm(dim=-1, keepdim=True))
            else:
                parameter.copy_(std * noise)
    return model.half().eval()


def save(model: transformers.PreTrainedModel, name: str) -> None:
    """Writes `model/<name>`, without a file of generation settings: every recording says what it sets."""
    folder = HERE / "model" / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert (folder / "model.safetensors").stat().st_size < 60_000  # it goes into the repository


def gpt2(*, tied: bool, seed: int) -> transformers.PreTrainedModel:
    """Six layers: the lower half of them for DoLa is [2] where embeddings are tied, [0, 2] where not."""
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=48,
        n_embd=WIDTH,
        n_inner=2 * WIDTH,
        n_layer=6,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
        tie_word_embeddings=tied,
    )
    return spread_out(transformers.GPT2LMHeadModel(config), 1.0, seed)


def marian(seed: int) -> transformers.PreTrainedModel:
    """Padding is the last id and begins the target, from a row of zeros, as in every Marian checkpoint.

    Trained for a minute, so that its attention means something: the target is the source read from its end,
    token by token through a table, with a token left out now and then. Far from finished, so that it doubts.
    """
    config = transformers.MarianConfig(
        vocab_size=VOCAB,
        decoder_vocab_size=VOCAB,
        max_position_embeddings=48,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        scale_embedding=True,
        bos_token_id=None,
        eos_token_id=0,
        forced_eos_token_id=None,
        pad_token_id=VOCAB - 1,
        decoder_start_token_id=VOCAB - 1,
    )
    torch.manual_seed(seed)
    model = spread_out(transformers.MarianMTModel(config), 0.25, seed).float()
    # Padding is never written: CTranslate2 has no row for it, and here its bias makes it impossible.
    model.final_logits_bias[0, VOCAB - 1] = -1e4
    table = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(VOCAB - 2)])
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        length = int(torch.randint(2, 8, ()))
        source = torch.randint(1, VOCAB - 1, (64, length))
        target = table[source.flip(1)]
        if torch.rand(()) < 0.3:
            left_out = int(torch.randint(0, length, ()))
            target = torch.cat([target[:, :left_out], target[:, left_out + 1 :]], dim=1)
        ends = torch.zeros(64, 1, dtype=torch.long)
        with torch.no_grad():
            model.model.shared.weight[VOCAB - 1] = 0
        loss = model.train()(input_ids=torch.cat([source, ends], 1), labels=torch.cat([target, ends], 1)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        model.model.shared.weight[VOCAB - 1] = 0
    return model.half().eval()


if __name__ == "__main__":
    makers = {
        "gpt2": lambda: gpt2(tied=True, seed=15),
        "gpt2-untied": lambda: gpt2(tied=False, seed=11),
        "marian": lambda: marian(seed=13),
    }
    for name in sys.argv[1:] or makers:
        save(makers[name](), name)
