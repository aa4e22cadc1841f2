"""The report of a model that was brought and tuned: its adapter, the merge, and what changed, for better or worse."""

import pytest

from ludus.evaluation.report import write_report

SIDE = {"stopped": 0.1, "mean_tokens": 120.4, "repetition": 0.02}
FORGETTING = {"before": 1.2, "after": 1.25, "difference": 0.05, "low": 0.02, "high": 0.08, "documents": 9}
MERGE = {"dtype": "bfloat16", "largest_difference": 0.047, "argmax_agreement": 1.0}


@pytest.fixture
def tuned(tmp_path, fake):
    """Return a maker of runs of tuning, with changes to what they measured."""

    def make(**changes):
        folder = tmp_path / "tuned"
        found = {
            "prompts": 10,
            "before": SIDE | {"reference_perplexity": 55.8, "bits_per_byte": 1.2},
            "after": SIDE | {"reference_perplexity": 29.5, "bits_per_byte": 1.25, "stopped": 0.9},
            "reference": {"difference": -0.636, "low": -1.1, "high": -0.4, "answers": 10},
            "forgetting": FORGETTING | {"verdict": "forgotten"},
        } | changes
        adapter = {"kind": "lora", "trained": 92_480, "parameters": 352_512, "quantise": "nf4"}
        fake.put(folder / "run.json", {"recipe": "qlora-instruct", "stages": ["sft", "compare", "report"]})
        fake.put(folder / "sft" / "manifest.json", fake.manifest("sft", 7.0, summary={"adapter": adapter}))
        fake.put(folder / "sft" / "merge.json", MERGE)
        fake.put(folder / "compare" / "manifest.json", fake.manifest("compare", 7.0, summary=found))
        return folder

    return make


def test_the_report_shows_the_adapter_its_merge_and_what_changed(tuned, fake):
    text = fake.read(write_report(tuned())).text.replace("\u202f", " ").replace("\u00a0", " ")
    assert "Perplexity of good answers from 55.8 to 29.5" in text
    for words in (
        *("-0.636 nats a token (-1.100 to -0.400)", "+0.0500 (+0.0200 to +0.0800)", "▼ forgotten", "10 % 90 %"),
        *("lora", "92.5 k (26.23 %)", "4-bit (nf4)", "logits within 0.047 in bfloat16"),
        "General text costs +0.050 bits per byte after the tuning: the model has forgotten something.",
    ):
        assert words in " ".join(text.split()), words


def test_it_links_to_the_page_of_answers_where_there_is_one(tuned, fake):
    folder = tuned()
    assert not any("href" in attributes for _, attributes in fake.read(write_report(folder)).elements)
    place = folder / "compare" / "comparison" / "compare.html"
    place.parent.mkdir(parents=True)
    place.write_text("<!doctype html>")
    links = [attributes["href"] for tag, attributes in fake.read(write_report(folder)).elements if tag == "a"]
    assert links == ["compare/comparison/compare.html"]


@pytest.mark.parametrize("torn", [{"before": 3}, {"after": None}, {"forgetting": [1]}, {"reference": "x"}])
def test_what_was_not_measured_is_left_out(tuned, fake, torn):
    text = fake.read(write_report(tuned(**torn))).text
    assert "4-bit (nf4)" in text
    assert "None" not in text
