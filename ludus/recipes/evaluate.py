"""Evaluation: the same held-out questions for every model of the run, and each model against the one before it."""

import json
from pathlib import Path

from ludus.base.console import say, track
from ludus.base.files import atomic_write, folder_in_progress, write_json
from ludus.corpus.build import read as documents
from ludus.corpus.exercises.build import read
from ludus.data import sources
from ludus.data.shards import TokenShards, joined
from ludus.evaluation.questions import Answer, ask
from ludus.evaluation.scores import against, score
from ludus.learning.hooks import NATS_PER_BIT, mean_loss
from ludus.learning.objectives.next_token import next_token
from ludus.model import exchange
from ludus.model.transformer import Transformer
from ludus.recipes.place import TRAINED, Made, Place, Stage
from ludus.recipes.schema import Recipe
from ludus.recipes.tokenizer import framed
from ludus.runs.manifest import Manifest
from ludus.text.tokenizer import Tokenizer

LABELS = {"pretrain": "base model", "dpo-control": "control: likelihood only"}
FOLDER = "evaluation"


def models(place: Place) -> dict[str, Path]:
    """Return the models of the run by stage, in order; the control of DPO follows it."""
    recipe, found = place.recipe, {}
    for stage in TRAINED:
        if stage in recipe.stages:
            found[stage] = place.model(stage)
            if stage == "dpo" and recipe.dpo.control:
                found["dpo-control"] = place.model("dpo-control")
    return found


def make(place: Place, manifest: Manifest) -> Made:
    """Ask, score, compare and print the table."""
    settings = place.recipe.evaluate
    exercises = read(place.exercises / "held_out.jsonl")[: settings.questions]
    answers: dict[str, list[Answer]] = {}
    validation: dict[str, TokenShards] = {}
    results = []
    found = models(place)
    for stage, folder in track(found.items(), "  evaluate", total=len(found)):
        model, tokenizer = exchange.load(folder), Tokenizer.load(folder)
        if tokenizer.hash not in validation:
            validation[tokenizer.hash] = validation_text(place, tokenizer)
        answers[stage] = ask(model, tokenizer, exercises, max_new_tokens=settings.max_new_tokens, rows=settings.rows)
        results.append(
            score(
                stage,
                answers[stage],
                bits_per_byte=bits_per_byte(place, model, tokenizer, validation[tokenizer.hash]),
                label=LABELS.get(stage, stage),
            )
        )
    for result in results:
        earlier = _compared_with(place.recipe, result["stage"], list(answers))
        if earlier:
            result["comparison"] = against(earlier, answers[earlier], answers[result["stage"]])
    folder = place.folder / FOLDER
    with folder_in_progress(folder) as temp:
        write_json(temp / "results.json", {"questions": len(exercises), "stages": results})
        for stage, given in answers.items():
            lines = "".join(json.dumps(answer.as_json()) + "\n" for answer in given)
            (temp / "answers").mkdir(exist_ok=True)
            atomic_write(temp / "answers" / f"{stage}.jsonl", lines)
    for line in table(len(exercises), results):
        say(f"  {line}")
    return Made({"results": folder}, summary={"stages": results})


def bits_per_byte(place: Place, model: Transformer, tokenizer: Tokenizer, validation: TokenShards) -> float:
    """Return bits per byte of the validation text: what a stage has done to the model's general language."""
    settings = place.recipe.pretrain
    batches = sources.in_order(
        validation,
        context=min(place.recipe.data.context, model.shape.context),
        rows=settings.rows,
        pad_token=tokenizer.pad,
        limit=settings.validation_rows,
    )
    loss = mean_loss(model, next_token, batches)
    return loss / NATS_PER_BIT / (validation.num_bytes / validation.predictions)


def validation_text(place: Place, tokenizer: Tokenizer) -> TokenShards:
    """Encode the validation text for a model, which may have come with a tokenizer of its own."""
    texts = [document.text for document in documents(place.corpus, "validation")]
    return joined(framed(tokenizer, texts), num_bytes=sum(len(text.encode()) for text in texts))


def table(questions: int, results: list[dict]) -> list[str]:
    """Lay the results out as lines of text."""
    lines = [
        f"{questions:,} held-out questions, greedy answers, 95 % intervals",
        f"{'model':<26}{'accuracy':>9}  {'interval':<15}{'concise':>8}{'bits/byte':>11}   against the stage before",
    ]
    for result in results:
        interval = f"{result['low']:6.1%} .. {result['high']:.1%}"
        against_before = result["comparison"]
        verdict = "" if against_before is None else _verdict(against_before)
        lines.append(
            f"{result['label']:<26}{result['accuracy']:>9.1%}  {interval:<15}{result['concise_share']:>8.0%}"
            f"{result['bits_per_byte']:>11.3f}   {verdict}"
        )
    return lines


def _verdict(found: dict) -> str:
    points = f"{100 * found['difference']:+.1f} points ({100 * found['low']:+.1f} .. {100 * found['high']:+.1f})"
    return f"{found['verdict']}: {points} on {found['with']}"


def _compared_with(recipe: Recipe, stage: str, stages: list[str]) -> str | None:
    """Name the stage whose model this one started from, if any; the control of DPO started where DPO did."""
    chain = [name for name in stages if name != "dpo-control"]
    trained = "dpo" if stage == "dpo-control" else stage
    place = chain.index(trained)
    return None if place == 0 or getattr(recipe, trained).base else chain[place - 1]


def settings_of(recipe: Recipe) -> dict:
    """Return what decides the outcome."""
    rows = {"context": recipe.data.context, "validation_rows": recipe.pretrain.validation_rows}
    return {"evaluate": recipe.evaluate.model_dump(mode="json"), **rows, "threads": recipe.threads}


STAGE = Stage(
    name="evaluate",
    settings=settings_of,
    inputs=lambda place: {**models(place), "documents": place.corpus, "exercises": place.exercises},
    needs=lambda place: ["exercises", *models(place)],
    make=make,
)
