"""What processors make of a small model: every text and its probability, each read from its beginning."""

import torch

import decodekit as dk


def next_probs(
    model: dk.Model, chain: dk.LogitsProcessor, prompt: list[int], said: list[int], capacity: int
) -> list[float]:
    """The distribution of the next token: model, processors and their memory begin anew every time."""
    one = dk.Prompt.from_ids([prompt])
    session, logits = model.start(one, rows_per_prompt=1, capacity=capacity)
    history = one.history(capacity, 1)
    memory = chain.init(history)
    scores, memory = chain.apply(history, logits, memory)
    for token in said:
        tokens = torch.tensor([token])
        history, logits = history.append(tokens), session.advance(tokens, None)
        scores, memory = chain.apply(history, logits, memory)
    probs: list[float] = scores[0].double().softmax(-1).nan_to_num(0.0).tolist()
    return probs


def every_text(
    model: dk.Model,
    prompt: list[int],
    chain: dk.LogitsProcessor,
    max_new_tokens: int,
    end_ids: tuple[int, ...] = (),
) -> dict[tuple[int, ...], float]:
    """Every text of positive probability, with that probability."""
    texts: dict[tuple[int, ...], float] = {}
    open_texts: list[tuple[list[int], float]] = [([], 1.0)]
    while open_texts:
        said, mass = open_texts.pop()
        if said and (said[-1] in end_ids or len(said) == max_new_tokens):
            texts[tuple(said)] = mass
            continue
        probs = next_probs(model, chain, prompt, said, len(prompt) + max_new_tokens)
        open_texts += [([*said, token], mass * prob) for token, prob in enumerate(probs) if prob > 0]
    return texts
