"""The verbs of the command line, as a table: what each does, where it lives and which sections of a recipe it reads.

Nothing is imported to read it, so that help is instant.
"""

from typing import NamedTuple

MAKE, USE, LOOK = "make a model", "use it", "look at it"
STAGE = "ludus.cli.stage"


class Verb(NamedTuple):
    """One verb; `sections` are the parts of a recipe its help shows, none if it reads no recipe."""

    module: str
    doc: str
    sections: tuple[str, ...] = ()
    group: str = MAKE


STAGES = ("corpus", "tokenizer", "data", "model", "pretrain", "exercises", "sft", "compare", "dpo", "grpo", "evaluate")

VERBS: dict[str, Verb] = {
    "run": Verb(STAGE, "every stage of a recipe, from raw text to an evaluated assistant", STAGES),
    "corpus": Verb(STAGE, "gather, clean and deduplicate text", ("corpus",)),
    "tokenizer": Verb(STAGE, "train a tokenizer on the corpus", ("tokenizer",)),
    "pretrain": Verb(STAGE, "teach a new model to predict text", ("data", "model", "pretrain")),
    "exercises": Verb(STAGE, "write the questions and answers that later stages learn from", ("exercises",)),
    "sft": Verb(STAGE, "fine-tune on good answers", ("data", "sft")),
    "dpo": Verb(STAGE, "learn from pairs of better and worse answers", ("data", "dpo")),
    "grpo": Verb(STAGE, "learn from rewards that can be checked", ("data", "grpo")),
    "resume": Verb("ludus.cli.resume", "go on with a run that was stopped"),
    "plan": Verb("ludus.cli.plan", "what a run will need, before it runs; from scratch or fine-tune"),
    "scaling": Verb("ludus.cli.scaling", "fit how the loss falls with size and text, and predict a larger run"),
    "sweep": Verb("ludus.cli.sweep", "run a recipe with several values of a setting and compare"),
    "chat": Verb("ludus.cli.chat", "talk with a model", group=USE),
    "generate": Verb("ludus.cli.generate", "complete a prompt", group=USE),
    "studio": Verb("ludus.cli.studio", "watch runs and chat in the browser; an OpenAI-compatible server", group=USE),
    "merge": Verb("ludus.cli.merge", "fold an adapter into its base, with a certificate", group=USE),
    "export": Verb("ludus.cli.export", "write a model folder for other software", group=USE),
    "evaluate": Verb(STAGE, "score each stage on held-out questions, with error bars", ("data", "evaluate"), LOOK),
    "inspect": Verb(
        "ludus.cli.inspect", "what a model would learn from data, token by token, and what is wrong with it", group=LOOK
    ),
    "report": Verb("ludus.cli.report", "one page about a run, or one that compares several", group=LOOK),
    "explain": Verb("ludus.cli.explain", "where a model came from, and the commands that make it again", group=LOOK),
    "compare": Verb(
        "ludus.cli.compare",
        "two models with the same prompts and seeds, side by side, and what was forgotten",
        group=LOOK,
    ),
    "peft": Verb(
        "ludus.cli.peft", "every kind of adapter on the same data, compared: ludus peft bench MODEL DATA", group=LOOK
    ),
}

EXAMPLES = (
    ("ludus run quickstart", "the whole way, in minutes, on a laptop"),
    ("ludus pretrain shakespeare model.depth=6 optimizer.kind=adamw", "one stage of a recipe, two settings changed"),
    ("ludus chat runs/quickstart", "talk with what came out"),
)
