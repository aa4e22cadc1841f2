"""Checkpoints with random weights of every family that ludus reads, saved by transformers with a tokenizer beside them.

What lives here: their shapes, and the habits of files in the wild: padded vocabularies, tied embeddings, shards,
half precision, a chat template of their own or none. What does not: what is done with them (`foreign.py`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

QUESTIONS = [
    ("What is 17 + 25?", "17 + 25 is 42."),
    ("Name the capital of France.", "It is Paris."),
    ("Which is heavier, a stone or a feather?", "A stone is heavier.\nA feather floats."),
    ("Say hello to Ada.", "Hello, Ada! How are you?"),
    ("How many legs has a spider?", "Eight."),
    ("Spell the word naïve.", "n-a-ï-v-e"),
    ("What comes after Tuesday?", "Wednesday comes after Tuesday."),
    ("Count to five.", "1, 2, 3, 4, 5"),
]
WORDS = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
TEXT = [WORDS + "### Instruction:\n" + question + "\n\n### Response:\n" + answer for question, answer in QUESTIONS]
END = "<|endoftext|>"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


class Family(NamedTuple):
    """How a checkpoint is made: transformers' configuration, its tokenizer, and how it is tuned (`sft.template`).

    `padding` is how many rows the model has beyond its tokens, as those of the wild do for speed.
    """

    config: str
    sizes: dict[str, Any]
    tokenizer: Callable[[Path | None], Any]
    template: str = "auto"
    padding: int = 0
    shard: str = "5GB"
    dtype: torch.dtype = torch.float32


def byte_pairs(
    begin: str, end: str, more: Sequence[str] = (), chat: str | None = None, splits: str | None = None
) -> Callable[[Path | None], Any]:
    """Return what makes a tokenizer of GPT-2's kind: trained on the spot, or GPT-2's own with other special tokens.

    `splits` says where words end, in place of GPT-2's way: transformers holds every Qwen 2 to that of its family.
    """

    def tokenizer(folder: Path | None) -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        specials = list(dict.fromkeys([begin, end, *more]))
        if splits is None and folder is not None and (folder / "gpt2" / "tokenizer.json").is_file():
            found = Tokenizer.from_file(str(folder / "gpt2" / "tokenizer.json"))
            found.add_special_tokens(specials)
        else:
            found = Tokenizer(models.BPE())
            bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits is None)
            found.pre_tokenizer = bytewise
            if splits is not None:
                cut = pre_tokenizers.Split(Regex(splits), "isolated")
                found.normalizer, found.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Sequence([cut, bytewise])
            found.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet)
            found.train_from_iterator(TEXT, trainer)
        named = {"bos_token": begin, "eos_token": end}
        return PreTrainedTokenizerFast(tokenizer_object=found, **named, **({"chat_template": chat} if chat else {}))

    return tokenizer


def sentence_pieces(chat: str | None = None) -> Callable[[Path | None], Any]:
    """Return what makes a tokenizer of Llama 2's kind: trained on the spot, or Llama 2's own."""

    def tokenizer(folder: Path | None) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        more = {"chat_template": chat} if chat else {}
        if folder is not None and (folder / "llama2" / "tokenizer.model").is_file():
            from transformers import LlamaTokenizer

            return LlamaTokenizer.from_pretrained(folder / "llama2", **more)
        every = [f"<0x{byte:02X}>" for byte in range(256)]
        trained = Tokenizer(models.BPE(unk_token="<unk>"))
        trained.pre_tokenizer = pre_tokenizers.Sequence(  # pieces end where words do, as SentencePiece's
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
        )
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *every])
        trained.train_from_iterator(TEXT, trainer)
        model = json.loads(trained.to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        found = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        found.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        found.add_special_tokens(["<unk>", "<s>", "</s>"])
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=found, **names, **more)

    return tokenizer


WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**WIDE, "max_position_embeddings": 256, "rms_norm_eps": 1e-5}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "llama2": Family("LlamaConfig", LLAMA, sentence_pieces()),
    "llama3": Family(
        "LlamaConfig",
        {**LLAMA, "num_key_value_heads": 2, "rope_parameters": STRETCHED, "tie_word_embeddings": True},
        byte_pairs(
            "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"), HEADERS
        ),
    ),
    "mistral": Family(
        "MistralConfig",
        {**LLAMA, "num_key_value_heads": 2, "sliding_window": 12},
        sentence_pieces(INST),
        shard="40KB",
    ),
    "qwen2": Family(
        "Qwen2Config",
        {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True},
        byte_pairs(END, IM[1], IM, CHATML, QWEN),
        padding=29,
    ),
    "qwen3": Family(
        "Qwen3Config",
        {**LLAMA, "num_key_value_heads": 2, "head_dim": 16},
        byte_pairs(END, END),
        template="chatml",
        dtype=torch.bfloat16,
    ),
    "gpt2": Family("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}, byte_pairs(END, END)),
    "gptj": Family(
        "GPTJConfig",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
        byte_pairs(END, END),
        padding=143,
    ),
}


def make(name: str, folder: Path, tokenizers: Path | None = None) -> Path:
    """Save a checkpoint of a family with random weights, none of them zero, and its tokenizer."""
    import transformers

    family = FAMILIES[name]
    tokenizer = family.tokenizer(tokenizers)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family.config == "Qwen2Config":
        ids["bos_token_id"] = tokenizer.convert_tokens_to_ids(END)
    config = getattr(transformers, family.config)(vocab_size=len(tokenizer) + family.padding, **ids, **family.sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(parameter + 0.2 * noise if parameter.dim() == 1 else noise * 32**-0.5)
    model.to(family.dtype).save_pretrained(folder, max_shard_size=family.shard)
    tokenizer.save_pretrained(folder)
    return folder
