"""Chat templates: the text they give, where they are found, and what a hostile one cannot do."""

import json
import re
import time
from pathlib import Path

import pytest

from engine.errors import PromptError, TokenizerError
from engine.weights import chat
from engine.weights.chat import ChatTemplate, read_chat_template, render_chat

TURNS = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Yes?"}]
CHATML = (
    "{% for message in messages %}\n"
    "  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{% if add_generation_prompt %}\n"
    "{{ '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def test_a_conversation_in_chatml() -> None:
    expected = "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
    assert render_chat(TURNS, template=CHATML, add_generation_prompt=False) == expected
    assert render_chat(TURNS, template=CHATML) == expected + "<|im_start|>assistant\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [CHATML, LLAMA2, "{{ messages | tojson(indent=2) }}\n  {% if true %}\n x\n {% endif %}\n"]
)
def test_the_text_equals_that_of_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    for generate in (True, False):
        (expected,), _ = utils.render_jinja_template(
            [TURNS], chat_template=source, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>"
        )
        ours = render_chat(TURNS, template=source, bos="<s>", eos="</s>", add_generation_prompt=generate)
        assert ours == expected


def test_first_and_last_tokens_by_name() -> None:
    template = ChatTemplate(source=LLAMA2, bos="<s>", eos="</s>")
    assert template.render(TURNS) == "<s>[INST] Hi <b> [/INST] Yes?</s>"


def test_a_template_may_refuse() -> None:
    with pytest.raises(PromptError, match="refuses these messages: Roles must alternate"):
        render_chat(TURNS[1:], template=LLAMA2)


def test_what_templates_expect_of_jinja() -> None:
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    assert json.loads(render_chat(TURNS, template=source)) == TURNS[0]
    assert "<b>" in render_chat(TURNS, template=source)
    counted = "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}"
    assert render_chat([], template="{{ strftime_now('%Y') }}" + counted) == f"{time.strftime('%Y')}2"


@pytest.mark.parametrize("name", ["tokenizer_config.json", "list", "jinja"])
def test_where_a_folder_keeps_it(name: str, tmp_path: Path) -> None:
    values: dict[str, object] = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    if name == "jinja":
        (tmp_path / "chat_template.jinja").write_text(LLAMA2)
        values["chat_template"] = "old"
    else:
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": LLAMA2}]
        values["chat_template"] = named if name == "list" else LLAMA2
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    assert read_chat_template(tmp_path) == ChatTemplate(source=LLAMA2, bos="<s>", eos="</s>")


def test_templates_by_name_and_where_processors_keep_them(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "tokenizer_config.json": {"chat_template": {"tool_use": "T", "default": LLAMA2}, "eos_token": "</s>"},
        "special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "<old>"},
        "chat_template.json": {"chat_template": "J"},
    }
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    assert read_chat_template(tmp_path) == ChatTemplate(source=LLAMA2, bos="<s>", eos="</s>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert read_chat_template(tmp_path) == ChatTemplate(source="J", bos="<s>", eos="</s>")


def test_a_list_of_templates_may_hold_anything(tmp_path: Path) -> None:
    odd = [1, None, {"name": ["default"], "template": "X"}, {"name": "default", "template": 5}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": odd}))
    assert read_chat_template(tmp_path) is None


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3, "bos_token": null}')
    assert read_chat_template(tmp_path) is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for %}", "is broken"),
        ("{{ ''.__class__.__mro__ }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ messages[0].update(role='x') }}", "fails"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "fails"),
        ("{{ 'x' * 10000000 }}", "repeated too often"),
        ("{{ 1000000 * [1] * 1000 }}", "repeated too often"),
        ("{{ 9 ** 999999 }}", "a power too large"),
        ("{{ '%99999999d' % 1 }}", "formatted too wide"),
        ("{{ 'x' | center(99999999) }}", "padded too wide"),
        ("{% for i in range(999999999) %}{% endfor %}", "fails"),
        ("{% for i in range(9999) %}{{ 'xxxxxxxxxx' * 9000 }}{% endfor %}", "writes more"),
        ("{{ undefined.attribute }}", "fails in line 1: 'undefined' is undefined"),
        ("{{ 1 / 0 }}", "fails"),
    ],
)
def test_a_hostile_or_broken_template_is_refused(source: str, words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        render_chat(TURNS, template=source)


TWICE = "{% set ns = namespace(s='x' * 1000000, l=[1]) %}{% for i in range(40) %}%s{% endfor %}"
MILLION = "('a' * 1000000)"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (TWICE.replace("%s", "{% set ns.s = ns.s + ns.s %}"), "makes a text or list of more than 16,777,216"),
        (TWICE.replace("%s", "{% set ns.s = ns.s ~ ns.s %}"), "makes a text or list"),
        (TWICE.replace("%s", "{% set ns.s = '%s%s' % (ns.s, ns.s) %}"), "makes a text or list"),
        (TWICE.replace("%s", "{% set ns.s = '{0}{0}'.format(ns.s) %}"), "makes a text or list"),
        (TWICE.replace("%s", "{% set ns.s = ns.s | forceescape | replace('x', 'xx') %}"), "makes a text or list"),
        *((TWICE.replace("%s", "{% set ns.l = [ns.l, ns.l] %}") + shown, "more than 262,144 values")
          for shown in ("{{ ns.l }}", "{{ ns.l | tojson }}", "{{ ns.l ~ 1 }}", "{{ '%s' % [ns.l] }}",
                        "{{ [ns.l] | join }}", "{{ '{}'.format(ns.l) }}")),
        ("{% set n=namespace(x=2) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "number too large"),
        (f"{{{{ {MILLION} | replace('a', {MILLION}) }}}}", "makes a text or list"),
        (f"{{{{ {MILLION}.replace('a', {MILLION}) }}}}", "makes a text or list"),
        (f"{{{{ {MILLION}.join([''] * 1000000) }}}}", "makes a text or list"),
        (f"{{{{ ([''] * 1000000) | join({MILLION}) }}}}", "more than 262,144 values"),
        *((f"{{{{ 'a'.{name}(9000000000) }}}}", "padded too wide")
          for name in ("ljust", "rjust", "center", "zfill", "expandtabs")),
        ("{{ '{:>9000000000}'.format('a') }}", "formatted too wide"),
        ("{{ '{:>{w}}'.format('a', w=9000000000) }}", "formatted too wide"),
        ("{{ '{a:>9000000000}'.format_map({'a': 1}) }}", "formatted too wide"),
        ("{{ [1] | batch(9000000000, 'x') | list }}", "divided too often"),
        ("{{ [1] | slice(9000000000) | list }}", "divided too often"),
        ("{{ ('\\n' * 1000000) | indent(256) }}", "makes a text or list"),
        ("{{ 'a'.translate({97: 'b'}) }}", "translate is not for templates"),
    ],
)  # fmt: skip
def test_a_template_cannot_fill_the_memory(source: str, words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        render_chat(TURNS, template=source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_that_writes_nothing_ends_too(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_MAX_S", 0.05)
    with pytest.raises(TokenizerError, match=r"takes more than 0\.05 s"):
        render_chat(TURNS, template=source)


def test_size_and_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenizerError, match=re.escape("has 1,048,577 characters")):
        render_chat([], template="x" * (2**20 + 1))
    monkeypatch.setattr(chat, "_MAX_S", 0.05)
    slow = "{% for i in range(3000) %}{% for j in range(3000) %}{{ '' }}{% endfor %}{% endfor %}"
    with pytest.raises(TokenizerError, match="takes more than"):
        render_chat([], template=slow)


CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "A <b>\u00e9\nsecond line"},
    {"role": "user", "content": "2+2?"},
]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}[{{ m.role }}]{% endif %}{% endfor %}",
        "{{ messages[1] | tojson }}{{ messages[1] | tojson(ensure_ascii=True) }}",
        "{{ messages[0] | tojson(indent=2, sort_keys=true) }}{{ messages[0] | tojson(separators=(',', ':')) }}",
        "{{ '%s: %05.1f' | format(messages[0].role, 3) }}{{ '%s' % messages[0].content }}{{ '%d%%' % 7 }}",
        "{{ messages[1].content | indent(4) }}{{ messages[1].content | indent(2, true) }}",
        "{% if tools is not none %}T{% endif %}{% if documents is not none %}D{% endif %}{{ tools is defined }}",
        "{{ unk_token }}{{ pad_token }}{{ bos_token }}{{ eos_token }}",
        "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}.",
        "{% for m in messages %}{{ m.content }}{% if loop.index == 1 %}{% break %}{% endif %}{% endfor %}",
        "{{ strftime_now('%f') | length }}",
        "{{ 'a' | center(5) }}{{ 'a'.center(5, '*') }}{{ 'a'.ljust(3, '-') }}{{ messages[0] | pprint }}",
        "{{ '{:>5}|{:03d}|{0[role]}'.replace('{0[role]}', '').format('a', 7) }}{{ '{0[role]}'.format(messages[0]) }}",
        "{{ 1 ~ 'a' ~ none ~ messages | length }}{{ [1, 'x', none] | join('-') }}",
        "{{ messages | map(attribute='role') | join }}",
        "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller else '' }}]{% endmacro %}"
        "{% call f('a') %}body{% endcall %}{{ f('b', y=2) }}",
        "{% set block %}hi {{ messages[0].content }}{% endset %}{{ block }}",
        "{% filter upper %}abc{% endfilter %}{{ messages[1].content | e }}{{ messages | batch(2) | list | length }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | join(', ') }}",
    ],
)
@pytest.mark.parametrize("thinking", [None, False])
def test_templates_write_what_transformers_writes(template: str, thinking: bool | None) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    extra = {} if thinking is None else {"enable_thinking": thinking}
    expected = theirs.render_jinja_template([CONVERSATION], chat_template=template, **tokens, **extra)[0][0]
    ours = ChatTemplate(source=template, bos="<s>", eos="</s>", unk="<unk>", pad="<pad>")
    assert ours.render(CONVERSATION, thinking=thinking, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a\n\n{{ messages[7].content.x }}", "fails in line 3"),
        ("a\n{% for m in messages %}", "broken in line 2"),
        ("{{ '%9999d' % 1 }}", "too wide"),
        ("{{ '%*d' | format(9, 1) }}", "too wide"),
        ("{{ 'a' | indent(100000) }}", "indented too far"),
    ],
)
def test_a_template_that_fails_says_where(template: str, words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        ChatTemplate(source=template).render(CONVERSATION)
