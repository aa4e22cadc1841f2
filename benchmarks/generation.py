"""Tokens drawn a CPU second, GPT-2 124M shape, bfloat16: ludus beside transformers, one thread, random weights.

    python benchmarks/generation.py            batches of 1 and 16, three rounds; 2 to 4 minutes
    python benchmarks/generation.py --rounds 1 --tokens 64

Both take turns in one process, from prompts of 8 tokens, with top-k 200. Time is all that a call takes: ludus's copy of
its weights, made anew at each call, is in it. Beside the figures stands what reading the weights alone would take.
"""

import argparse
from collections.abc import Callable
from statistics import median

import measuring
import torch
from measuring import GPT2
from quickstart import markdown, spread

PROMPT, TOP_K = 8, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=256, help="new tokens a sequence at batch 1, half beyond")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    makers: dict[str, Callable[[int, int], None]] = {"transformers": transformers(), "ludus": ludus()}
    rates: dict[tuple[str, int], list[float]] = {}
    for batch in arguments.batches:
        count = arguments.tokens if batch == 1 else arguments.tokens // 2
        for make in makers.values():
            make(batch, 4)  # warm up
        for number in range(arguments.rounds):
            for name, make in makers.items():
                print(f"  round {number}: {name}, batch {batch}", flush=True)
                seconds = measuring.clock(lambda make=make, batch=batch, count=count: make(batch, count))[1]
                rates.setdefault((name, batch), []).append(batch * count / seconds)
    rows = [["batch", *(f"{name}, tokens a CPU s" for name in makers), "ratio of medians"]]
    for batch in arguments.batches:
        found = [rates[name, batch] for name in makers]
        ratio = median(found[1]) / median(found[0])
        rows.append([str(batch), *(spread(each, ".1f") for each in found), f"{ratio:.2f}"])
    measuring.write("generation", "Drawing tokens, GPT-2 124M, bfloat16", [markdown(rows), bound()], arguments.threads)


def transformers() -> Callable[[int, int], None]:
    """Return transformers' way to draw, with its KV cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).to(torch.bfloat16).eval()

    @torch.inference_mode()
    def make(batch: int, count: int) -> None:
        prompt = torch.arange(PROMPT).repeat(batch, 1)
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=TOP_K,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            use_cache=True,
        )
        assert found.shape[1] == PROMPT + count

    return make


def ludus() -> Callable[[int, int], None]:
    """Return our way."""
    from ludus.generation.engine import Sampling, generate
    from ludus.model.transformer import build

    model = build(GPT2, seed=0, initial="gpt2")
    model.precision = torch.bfloat16

    def make(batch: int, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        found = generate(model, [list(range(PROMPT))] * batch, Sampling(count, top_k=TOP_K), generator=generator)
        assert all(len(each.tokens) == count for each in found)

    return make


def bound() -> str:
    """Say how fast memory can be read, and how many tokens a second that allows at batch 1."""
    numbers = torch.ones(1 << 27)
    seconds = min(measuring.clock(numbers.sum)[1] for _ in range(3))
    rate = numbers.numel() * 4 / seconds
    weights = 2 * (GPT2.layers * 12 * GPT2.width**2 + GPT2.vocabulary * GPT2.width)
    return (
        f"Memory is read at {rate / 1e9:.1f} GB a CPU second; the weights are {weights / 1e6:.0f} MB, so one sequence "
        f"cannot have more than {rate / weights:.0f} tokens a second."
    )


if __name__ == "__main__":
    main()
