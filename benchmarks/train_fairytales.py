"""Train the bundled language model, `decodekit/assets/fairytales`, on a plain text.

    python benchmarks/train_fairytales.py fairybooks.txt.gz --out decodekit/assets/fairytales

The text is Andrew Lang's twelve coloured Fairy Books, one paragraph per line, with an empty line between
books. The script writes a model of the GPT-2 architecture with about 4.3 million parameters, in half
precision; its own byte-level BPE tokenizer; and `training.json` with the settings, the loss curve and the
final losses. `--tokens` fixes the schedule, so a command gives the same model every time, up to the rounding
of parallel sums. On two CPU cores 12 million tokens take 45 to 60 minutes. To use a GPU, add `--device cuda`.
"""

import gzip
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
# These editions have no titles, so the start of a story is recognised by its opening words.
STORY_START = re.compile(
    r"^['\"]?(?=Once upon a time|Once on a time|Once there|There was once|There once|There were once"
    r"|There lived|Long ago|Long, long ago|A long time ago|In a certain|Many years ago|In the olden)",
    re.MULTILINE,
)
HELD_OUT = 0.05  # held-out fraction at the end of every book


def read_books(path: Path) -> list[str]:
    """The books, each with `END` before every story."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [STORY_START.sub(lambda match: END + match[0], book) for book in text.split("\n\n")]


def train_tokenizer(text: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE of `vocab` tokens, with `END` as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def split(books: list[str]) -> tuple[list[str], list[str]]:
    """The training head and the held-out tail of every book."""
    cuts = [int(len(book) * (1 - HELD_OUT)) for book in books]
    heads = [END + book[:cut] for book, cut in zip(books, cuts, strict=True)]
    return heads, [book[cut:] for book, cut in zip(books, cuts, strict=True)]


def blocks(tokens: Tensor, length: int) -> Tensor:
    """All whole blocks of `length + 1` tokens; blocks overlap by one, so every token is predicted once."""
    return tokens.unfold(0, length + 1, length)


def epochs(tokens: Tensor, length: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """An endless iterator over batches of blocks; every epoch cuts the text at another offset."""
    while True:
        offset = int(torch.randint(length, (), generator=generator))
        cut = blocks(tokens[offset:], length)
        order = torch.randperm(len(cut), generator=generator)
        for chosen in order.split(batch):  # type: ignore[no-untyped-call]
            if len(chosen) == batch:
                yield cut[chosen]


def loss_of(model: GPT2LMHeadModel, batch: Tensor) -> Tensor:
    """Mean negative log-likelihood of the batch's tokens after the first, in nats per token."""
    with torch.autocast(batch.device.type, torch.bfloat16):
        logits = model(batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, tokens: Tensor, length: int) -> float:
    """Mean loss over all of `tokens`, in nats per token."""
    model.eval()
    cut = blocks(tokens, length)
    batches = cut.split(8)  # type: ignore[no-untyped-call]
    losses = [loss_of(model, batch).item() * len(batch) for batch in batches]
    model.train()
    return sum(losses) / len(cut)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 3 %, then a cosine to a twentieth of `peak`."""
    warm_up, floor = 0.03, 0.05
    if progress < warm_up:
        return peak * progress / warm_up
    along = (progress - warm_up) / (1 - warm_up)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


def main(
    text: Annotated[Path, typer.Argument(help="The text, plain or .gz.")],
    out: Annotated[Path, typer.Option(help="The folder for the model.")],
    *,
    tokens: Annotated[float, typer.Option(help="Tokens to train on, repeats counted.")] = 12e6,
    vocab: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 4096,
    length: Annotated[int, typer.Option(help="Context in tokens.")] = 512,
    batch: Annotated[int, typer.Option(help="Blocks per step.")] = 8,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    dropout: Annotated[
        float, typer.Option(help="Dropout on embeddings and residuals, as a probability.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of blocks.")] = 0,
    device: Annotated[str, typer.Option(help="The device for training.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the tokenizer and the model, and write both with `training.json` into OUT."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    heads, tails = split(read_books(text))
    tokenizer = train_tokenizer(heads, vocab)
    train, held_out = (
        torch.tensor(
            [token for encoding in tokenizer.encode_batch(part) for token in encoding.ids],
            device=device,
        )
        for part in (heads, tails)
    )
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=length,
        n_embd=256,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # the GELU of GPT-2, as one kernel
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=0.0,  # attention dropout would disable the fused kernel, and halve the speed
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=True,
    )
    steps = int(tokens / (batch * length))
    batches = epochs(train, length, batch, torch.Generator().manual_seed(seed))
    curve, start = [], time.monotonic()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, peak)
        loss = loss_of(model, next(batches))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            seen = step * batch * length
            curve.append({"tokens": seen, "train": round(loss.item(), 4)})
            if step % 500 == 0 or step == steps:
                curve[-1]["held_out"] = round(evaluate(model, held_out, length), 4)
            print(curve[-1], f"{seen / (time.monotonic() - start):.0f} tokens/s", flush=True)

    model = model.half().float().cpu().eval()  # the loss is measured with the rounded weights that are saved
    out.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=length,
    ).save_pretrained(out)
    model.half().save_pretrained(out)
    model.float()
    # The file is in half precision; `from_pretrained` loads it in single precision.
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n")
    characters = sum(map(len, tails))
    final = evaluate(model, held_out.cpu(), length)
    (out / "training.json").write_text(
        json.dumps(
            {
                "held_out_nats_per_token": round(final, 4),
                "held_out_perplexity": round(math.exp(final), 2),
                "held_out_nats_per_character": round(final * len(held_out) / characters, 4),
                "held_out_tokens": len(held_out),
                "train_tokens": len(train),
                "tokens_seen": steps * batch * length,
                "epochs": round(steps * batch * length / len(train), 2),
                "minutes": round((time.monotonic() - start) / 60, 1),
                "parameters": sum(p.numel() for p in model.parameters()),
                "settings": {
                    "batch": batch,
                    "length": length,
                    "peak_learning_rate": peak,
                    "dropout": dropout,
                    "weight_decay": 0.1,
                    "seed": seed,
                    "device": device,
                    "threads": threads,
                    "autocast": "bfloat16",
                },
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "curve": curve,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
