"""Train the bundled translation model, `decodekit/assets/en-fr`, on sentence pairs.

    python benchmarks/train_en_fr.py fra-eng.zip --out decodekit/assets/en-fr

The pairs come from manythings.org/anki and tatoeba.org: English, a tab, French, one pair per line. The script
writes a model of the Marian architecture with about 4 million parameters, in half precision; a byte-level BPE
tokenizer for both languages; and `training.json` with the settings, the loss curve and the final losses. Two
hundredths of the English sentences, with all their translations, are held out: see `read_pairs`. An
interrupted run continues from `--checkpoint` if it is started again with the same arguments. `--epochs` fixes
the schedule, so a command gives the same model every time, up to the rounding of parallel sums.
"""

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from sentence_pairs import read_pairs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

PAD, END = "<pad>", "</s>"
PAD_ID, END_ID = 0, 1
LONGEST = 64  # longest sentence of the training data, in tokens


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE of `vocab` tokens that appends an end token to every sentence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[PAD, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, END_ID)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> list[tuple[Tensor, Tensor]]:
    """The pairs as ids, without long ones."""
    sides = [
        [encoding.ids for encoding in tokenizer.encode_batch(list(side))] for side in zip(*pairs, strict=True)
    ]
    return [
        (torch.tensor(source), torch.tensor(target))
        for source, target in zip(*sides, strict=True)
        if len(source) <= LONGEST and len(target) <= LONGEST
    ]


def batches(
    pairs: list[tuple[Tensor, Tensor]], budget: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: pairs of similar lengths together, about `budget` tokens a batch, in random order."""
    noise = torch.rand(len(pairs), generator=generator)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]) + 2 * float(noise[i]))
    cut: list[list[int]] = [[]]
    for i in order:
        if (len(cut[-1]) + 1) * (len(pairs[i][0]) + len(pairs[i][1])) > budget:
            cut.append([])
        cut[-1].append(i)
    for number in torch.randperm(len(cut), generator=generator).tolist():
        sources, targets = zip(*(pairs[i] for i in cut[number]), strict=True)
        yield (
            pad_sequence(list(sources), batch_first=True, padding_value=PAD_ID),
            pad_sequence(list(targets), batch_first=True, padding_value=PAD_ID),
        )


def loss_of(model: MarianMTModel, source: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean negative log-likelihood of the targets' tokens, in nats per token."""
    start = torch.full_like(target[:, :1], PAD_ID)
    logits = model(
        input_ids=source,
        attention_mask=(source != PAD_ID).long(),
        decoder_input_ids=torch.cat([start, target[:, :-1]], 1),
        use_cache=False,
    ).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PAD_ID, label_smoothing=smoothing
    )


@torch.no_grad()
def evaluate(model: MarianMTModel, pairs: list[tuple[Tensor, Tensor]], budget: int = 4096) -> float:
    """Mean loss over all targets' tokens, in nats per token."""
    model.eval()
    total = tokens = 0.0
    for source, target in batches(pairs, budget, torch.Generator().manual_seed(0)):
        number = int((target != PAD_ID).sum())
        total += loss_of(model, source, target).item() * number
        tokens += number
    model.train()
    return total / tokens


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine to 0."""
    warm_up = 0.1
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def save(model: MarianMTModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write model and tokenizer, in half precision; `from_pretrained` loads the model in single precision."""
    out.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=2 * LONGEST,
    ).save_pretrained(out)
    copy.deepcopy(model).half().save_pretrained(out)  # a copy, because training continues in single precision
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n")


def make_model(vocab: int, width: int, layers: int, dropout: float) -> MarianMTModel:
    """The model with random weights."""
    config = MarianConfig(
        vocab_size=vocab,
        max_position_embeddings=2 * LONGEST,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=width // 32,
        decoder_attention_heads=width // 32,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        activation_function="relu",
        dropout=dropout,
        attention_dropout=0.0,  # it would disable the fused kernel
        activation_dropout=0.0,
        scale_embedding=True,
        init_std=width**-0.5,  # scaled embeddings have size 1
        pad_token_id=PAD_ID,
        eos_token_id=END_ID,
        bos_token_id=None,
        decoder_start_token_id=PAD_ID,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config).train()
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, eos_token_id=END_ID, decoder_start_token_id=PAD_ID
    )
    return model


def make_optimizer(model: MarianMTModel, peak: float) -> torch.optim.AdamW:
    """AdamW, with a little weight decay on the matrices."""
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in model.parameters() if p.ndim > 1 and p.requires_grad],
                "weight_decay": 0.01,
            },
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=peak,
        betas=(0.9, 0.98),
        fused=True,
    )


class Fit:
    """A training run that can be saved and continued."""

    def __init__(self, model: MarianMTModel, peak: float, steps: int, checkpoint: Path) -> None:
        self.model, self.peak, self.steps, self.checkpoint = model, peak, steps, checkpoint
        self.optimizer = make_optimizer(model, peak)
        self.step, self.seen, self.curve, spent = 0, 0, [], 0.0
        if checkpoint.exists():
            left = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(left["model"])
            self.optimizer.load_state_dict(left["optimizer"])
            self.step, self.seen, self.curve, spent = (left[n] for n in ("step", "seen", "curve", "spent"))
            torch.set_rng_state(left["dropout"])
        self.start = time.monotonic() - spent

    @property
    def seconds(self) -> float:
        """Training time so far, without interruptions."""
        return time.monotonic() - self.start

    def learn(self, source: Tensor, target: Tensor, smoothing: float) -> float:
        """Take one step, and return its loss."""
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step / self.steps, self.peak)
        loss = loss_of(self.model, source, target, smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seen += int((source != PAD_ID).sum() + (target != PAD_ID).sum())
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint."""
        left = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        left |= {"step": self.step, "seen": self.seen, "curve": self.curve, "spent": self.seconds}
        torch.save(left | {"dropout": torch.get_rng_state()}, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)


def main(
    pairs: Annotated[Path, typer.Argument(help="The archive of sentence pairs.")],
    out: Annotated[Path, typer.Option(help="The folder for the model.")],
    *,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 6.0,
    vocab: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 4096,
    width: Annotated[int, typer.Option(help="Width of the model.")] = 192,
    layers: Annotated[int, typer.Option(help="Layers of the encoder, and of the decoder.")] = 3,
    budget: Annotated[int, typer.Option(help="Tokens per batch, of both languages with padding.")] = 4096,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 7e-4,
    dropout: Annotated[float, typer.Option(help="Dropout, as a probability.")] = 0.1,
    smoothing: Annotated[float, typer.Option(help="Label smoothing, as a probability.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of batches.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of an interrupted run.")] = Path("en-fr.pt"),
) -> None:
    """Train the tokenizer and the model, and write both with `training.json` into OUT."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parts = read_pairs(pairs)
    tokenizer = train_tokenizer([text for pair in parts.train for text in pair], vocab)
    train, validation, test = (encode(tokenizer, part) for part in parts)
    model = make_model(vocab, width, layers, dropout)
    per_epoch = sum(1 for _ in batches(train, budget, torch.Generator().manual_seed(seed)))
    fit = Fit(model, peak, int(epochs * per_epoch), checkpoint)
    losses: list[float] = []
    while fit.step < fit.steps:
        # The order of an epoch depends only on its number, so that an interrupted epoch can be continued.
        generator = torch.Generator().manual_seed(seed + fit.step // per_epoch)
        for number, (source, target) in enumerate(batches(train, budget, generator)):
            if number < fit.step % per_epoch or fit.step == fit.steps:
                continue
            losses.append(fit.learn(source, target, smoothing))
            if fit.step % 100 == 0:
                mean = sum(losses) / len(losses)
                fit.curve.append({"step": fit.step, "tokens": fit.seen, "train_smoothed": round(mean, 4)})
                losses.clear()
                if fit.step % 500 == 0:
                    fit.curve[-1]["validation"] = round(evaluate(model, validation), 4)
                    save(model, tokenizer, out)
                    fit.save()
                print(fit.curve[-1], f"of {fit.steps}, {fit.seen / fit.seconds:.0f} tokens/s", flush=True)

    model = model.half().float().eval()  # the losses are measured with the rounded weights that are saved
    save(model, tokenizer, out)
    (out / "training.json").write_text(
        json.dumps(
            {
                "validation_nats_per_token": round(evaluate(model, validation), 4),
                "test_nats_per_token": round(evaluate(model, test), 4),
                "pairs": {"train": len(train), "validation": len(validation), "test": len(test)},
                "tokens_seen": fit.seen,
                "epochs": round(fit.step / per_epoch, 2),
                "minutes": round(fit.seconds / 60, 1),
                "parameters": sum(p.numel() for p in model.parameters()),
                "settings": {
                    "vocab": vocab,
                    "width": width,
                    "layers": layers,
                    "budget": budget,
                    "peak_learning_rate": peak,
                    "dropout": dropout,
                    "label_smoothing": smoothing,
                    "weight_decay": 0.01,
                    "seed": seed,
                    "threads": threads,
                },
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "curve": fit.curve,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
