"""One variant of `finetuning.py` in this process: for every line that comes in it takes a step and prints what it cost.

What is printed is `step SECONDS PEAK`: CPU seconds of the step, or, for the variants called start, of the process since
it began; and the bytes that the process has held at most. Libraries are imported by the variant that needs them.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROWS, TIME, VOCABULARY = 8, 256, 8192
SIZES = {"layers": 8, "width": 256, "heads": 4, "hidden": 688, "time": TIME, "rows": ROWS, "vocabulary": VOCABULARY}
SMALL = {"layers": 2, "width": 64, "heads": 4, "hidden": 172, "time": 64, "rows": 8, "vocabulary": 512}
RANK, ALPHA, RATE = 8, 16, 1e-4

Step = Callable[[], None]


def main() -> None:
    who, *what = sys.argv[1:]
    {"ludus": ludus, "peft": peft, "trl": trl}[who](what, SMALL if "start" in what else SIZES)


def commanded(step: Step, whole: bool) -> None:
    """Take a step for each line that comes in, and say what it cost."""
    for _ in sys.stdin:
        before = 0.0 if whole else time.process_time()
        step()
        told(time.process_time() - before)


def told(seconds: float) -> None:
    """Print the cost of a step."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"step {seconds} {peak}", flush=True)


def ludus(what: list[str], sizes: dict[str, int]) -> None:
    """Steps of the one loop; as in a stage that is worth it, the way to attend is measured before the first."""
    from ludus.learning import autotune
    from ludus.learning.loop import Run, train
    from ludus.learning.objectives.next_token import next_token
    from ludus.optim import groups
    from ludus.optim.settings import AdamWSettings
    from ludus.parallel import mesh

    model, batch = ludus_model(what, sizes), ludus_batch(what, sizes)
    if "start" not in what:
        tries = {"attention": autotune.candidates(model, batch)["attention"]}
        choice = autotune.choose(model, next_token, batch, steps_planned=100_000, cache=None, tries=tries)
        autotune.apply(choice, model)
        print(choice, file=sys.stderr)
    optimizer = groups.build(model.named_parameters(), AdamWSettings(learning_rate=RATE), precision=model.precision)
    run = Run(Path(), model, optimizer, lambda step: 1.0, Endless(batch))
    here = mesh.current()
    commanded(lambda: train(run, next_token, steps=run.step + 1, mesh=here), "start" in what)


def ludus_model(what: list[str], sizes: dict[str, int]) -> Any:
    """Return a model with the adapter, the base and the precision asked for."""
    import torch

    from ludus.adapters.apply import apply
    from ludus.adapters.settings import DoraSettings, LoraSettings
    from ludus.model.architecture import Architecture
    from ludus.model.transformer import build

    width, heads = sizes["width"], sizes["heads"]
    shape = Architecture(
        sizes["vocabulary"], sizes["layers"], width, heads, heads, width // heads, sizes["hidden"], sizes["time"]
    )
    model = build(shape, seed=0, initial="gpt2")
    model.precision = torch.bfloat16 if "bfloat16" in what else torch.float32
    if "qlora" in what:
        from ludus.adapters.quantised import quantise_model

        quantise_model(model, "nf4", kernel="bitsandbytes" if "bitsandbytes" in what else "torch")
    if "half" not in what:
        settings = DoraSettings if "dora" in what else LoraSettings
        apply(model, settings(rank=RANK, alpha=ALPHA), seed=0)
    return model


def ludus_batch(what: list[str], sizes: dict[str, int]) -> Any:
    """Return the batch that every step learns from; its first half of each row is given, where half is asked for."""
    import torch

    from ludus.data.batch import Batch

    weights = torch.ones(sizes["rows"], sizes["time"])
    if "half" in what:
        weights[:, : sizes["time"] // 2] = 0
    tokens = torch.cat((drawn(sizes), torch.zeros(sizes["rows"], 1, dtype=torch.long)), dim=1)  # as many go in
    return Batch(tokens, weights, float(weights.sum()))


class Endless:
    """A source that gives the same batch for ever."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def drawn(sizes: dict[str, int]) -> Any:
    """Return the tokens of the batch."""
    import torch

    return torch.randint(
        sizes["vocabulary"], (sizes["rows"], sizes["time"]), generator=torch.Generator().manual_seed(0)
    )


def llama(sizes: dict[str, int]) -> Any:
    """Return transformers' model of the shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes["vocabulary"],
            hidden_size=sizes["width"],
            intermediate_size=sizes["hidden"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["heads"],
            max_position_embeddings=sizes["time"],
            tie_word_embeddings=False,
        )
    ).train()


def lora_config(what: list[str]) -> Any:
    """Return peft's settings of the same adapter."""
    from peft import LoraConfig

    dora = "dora" in what
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")


def peft(what: list[str], sizes: dict[str, int]) -> None:
    """Steps of a plain loop over peft's adapter on transformers' model, with PyTorch's AdamW."""
    import contextlib

    import torch
    from peft import get_peft_model

    model = get_peft_model(llama(sizes), lora_config(what))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE)
    narrow = torch.autocast("cpu", dtype=torch.bfloat16) if "bfloat16" in what else contextlib.nullcontext()
    tokens = drawn(sizes)

    def step() -> None:
        with narrow:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())

    commanded(step, "start" in what)


def trl(what: list[str], sizes: dict[str, int]) -> None:
    """Steps of TRL's trainer, as it takes them: what is measured begins and ends where it says a step does."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = drawn(sizes).tolist()
    given = sizes["time"] // 2 if "half" in what else 0
    steps = 1 if "start" in what else 10_000
    data = Dataset.from_dict(
        {
            "input_ids": rows * steps if steps == 1 else rows * 100,
            "labels": [[-100] * given + row[given:] for row in rows] * (1 if steps == 1 else 100),
        }
    )

    class Commanded(TrainerCallback):
        """Waits for a line before each step, and says what the step cost."""

        before = 0.0

        def on_step_begin(self, arguments: Any, state: Any, control: Any, **rest: Any) -> Any:
            if not sys.stdin.readline():
                control.should_training_stop = True
                sys.stdout.flush()
                import os

                os._exit(0)  # nobody asks for another step
            self.before = 0.0 if "start" in what else time.process_time()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **rest: Any) -> Any:
            told(time.process_time() - self.before)

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=sizes["rows"],
            max_steps=steps,
            max_length=sizes["time"],
            learning_rate=RATE,
            bf16="bfloat16" in what,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        adapter = None if "half" in what else lora_config(what)
        trainer = SFTTrainer(llama(sizes), settings, train_dataset=data, processing_class=words(), peft_config=adapter)
        trainer.add_callback(Commanded())
        trainer.train()


def words() -> Any:
    """Return a tokenizer, which the trainer wants and the data does not need."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model = WordLevel({"<pad>": 0, "<end>": 1, "<unknown>": 2}, unk_token="<unknown>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>", eos_token="<end>")


if __name__ == "__main__":
    main()
