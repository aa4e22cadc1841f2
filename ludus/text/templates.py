"""Chat templates by name, for base models that come without one, and for data in another model's form.

Each is written here to give, token for token, what the models it is named for were trained on. What each needs (new
tokens, which token ends a turn) is said beside it. Models without a system role get the system's message before the
user's first. Contents are stripped where those models strip them.
"""

from typing import NamedTuple

from ludus.base.errors import ConfigError, DataError, nearest
from ludus.text.template import BOS, END, ENDOFTEXT, ENDOFTEXT_TEMPLATE, NEEDED, TEMPLATE
from ludus.text.tokenizer import Tokenizer


class Named(NamedTuple):
    """A template: its Jinja source, the special tokens it needs, and which of them end a turn and begin a text.

    Without `end` and `bos` it uses those that the tokenizer has.
    """

    source: str
    tokens: tuple[str, ...] = ()
    end: str | None = None
    bos: str | None = None
    doc: str = ""


CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = 'ipython' if message.role == 'tool' else message.role -%}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

MISTRAL = """\
{{- bos_token -}}
{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
    {%- elif message.role == 'user' -%}
        {%- set first = system is not none and loop.index0 == 1 -%}
        {{- '[INST] ' ~ (system ~ '\\n\\n' if first else '') ~ message.content ~ '[/INST]' -}}
    {%- elif message.role == 'assistant' -%}
        {{- ' ' ~ message.content | trim ~ eos_token -}}
    {%- else -%}
        {{- raise_exception('the mistral template has no role ' ~ message.role ~ ' here') -}}
    {%- endif -%}
{%- endfor -%}
"""

QWEN = """\
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
            {{- '<|im_start|>user' -}}
        {%- endif -%}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' -}}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
            {{- '<|im_end|>\\n' -}}
        {%- endif -%}
    {%- else -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

GEMMA = """\
{{- bos_token -}}
{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
    {%- elif message.role in ['user', 'assistant'] -%}
        {%- set role = 'model' if message.role == 'assistant' else 'user' -%}
        {%- set before = system ~ '\\n\\n' if system is not none and loop.index0 == 1 else '' -%}
        {{- '<start_of_turn>' ~ role ~ '\\n' ~ before ~ message.content | trim ~ '<end_of_turn>\\n' -}}
    {%- else -%}
        {{- raise_exception('the gemma template has no role ' ~ message.role ~ ' here') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

ALPACA = """\
{{- bos_token -}}
{%- if messages[0].role != 'system' -%}
    {{- 'Below is an instruction that describes a task. ' -}}
    {{- 'Write a response that appropriately completes the request.\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
        {{- message.content ~ '\\n\\n' -}}
    {%- elif message.role == 'user' -%}
        {{- '### Instruction:\\n' ~ message.content ~ '\\n\\n' -}}
    {%- elif message.role == 'tool' -%}
        {{- '### Input:\\n' ~ message.content ~ '\\n\\n' -}}
    {%- elif message.role == 'assistant' -%}
        {{- '### Response:\\n' ~ message.content ~ eos_token -}}
        {{- '\\n\\n' if not loop.last -}}
    {%- else -%}
        {{- raise_exception('the alpaca template has no role ' ~ message.role ~ ' here') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\\n' -}}
{%- endif -%}
"""

PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- message.content -}}
    {{- eos_token if message.role == 'assistant' -}}
{%- endfor -%}
"""

_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_IM = ("<|im_start|>", "<|im_end|>")
TEMPLATES = {
    "ludus": Named(TEMPLATE, NEEDED[TEMPLATE], END, BOS, "ours: <|user|>..., a token for each role"),
    "chatml": Named(CHATML, _IM, "<|im_end|>", doc="<|im_start|>user..., two new tokens; many open models"),
    "llama3": Named(LLAMA3, _HEADERS, "<|eot_id|>", "<|begin_of_text|>", "Llama 3's, without its dates and tools"),
    "mistral": Named(MISTRAL, doc="[INST] ...[/INST], as Mistral's third version; system before the first user turn"),
    "qwen": Named(QWEN, _IM, "<|im_end|>", doc="Qwen 2.5's: ChatML with its default system message"),
    "gemma": Named(
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<bos>",
        "Gemma's; system before the first user turn",
    ),
    "alpaca": Named(ALPACA, doc="### Instruction: ... ### Response: in words, no new tokens"),
    "plain": Named(PLAIN, doc="contents and nothing else: what the prompt holds goes on in the answer"),
}
NAMES = ("auto", "own", *TEMPLATES)
# Sources that need no sandbox of their own, since nobody else wrote them.
OURS = frozenset({ENDOFTEXT_TEMPLATE, *(named.source for named in TEMPLATES.values())})


def choose(tokenizer: Tokenizer, name: str = "auto") -> Tokenizer:
    """Return a tokenizer with the template of a name; `auto` is its own if it has one, else alpaca.

    Alpaca needs no new tokens, so the model keeps its size. What others add is in the tokenizer's `added`, and the
    model has to be resized for it. Raises `ConfigError` for an unknown name, `DataError` for `own` where there is none.
    """
    if name not in NAMES:
        near = nearest(name, NAMES)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"unknown chat template {name!r}{hint} There are: {', '.join(NAMES)}")
    has = tokenizer.template is not None
    if name == "own" and not has:
        raise DataError("the tokenizer has no chat template of its own; choose auto, alpaca or chatml")
    if name == "own" or (name == "auto" and has):
        return tokenizer
    wanted = "alpaca" if name == "auto" else name
    if wanted == "ludus" and ENDOFTEXT in tokenizer.special_ids and not {BOS, END} & set(tokenizer.special_ids):
        needed = NEEDED[ENDOFTEXT_TEMPLATE]
        return tokenizer.with_template(ENDOFTEXT_TEMPLATE, tokens=needed, end=ENDOFTEXT, bos=ENDOFTEXT)
    named = TEMPLATES[wanted]
    return tokenizer.with_template(named.source, tokens=named.tokens, end=named.end, bos=named.bos)


def name_of(tokenizer: Tokenizer) -> str:
    """Return what the tokenizer's template is called: one of `TEMPLATES`, `own`, or `none`."""
    if tokenizer.template is None:
        return "none"
    found = (name for name, named in TEMPLATES.items() if named.source == tokenizer.template)
    return next(found, "ludus" if tokenizer.template == ENDOFTEXT_TEMPLATE else "own")
