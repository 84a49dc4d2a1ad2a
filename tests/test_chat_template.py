"""Rendered prompts of every family, their token ids, and what the sandbox refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from vocabularies import KEY, checked, gguf_keys, glm_ranks, glm_vocab, texts

from rillm.chat_template import ChatTemplate, ChatTemplateError
from rillm.chat_templates import sandbox
from rillm.prepare.tiktoken_vocab import GLM_SPECIALS
from rillm.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
ANSWER = {"role": "assistant", "content": "A"}
TWO_TURNS = [SYSTEM, USER, ANSWER, {"role": "user", "content": "U2"}]
GLM_TURNS = "<|system|>\nS<|user|>\nU<|assistant|>\nA<|user|>\nU2"
EDGE = {KEY + "tokens": ["x"] * 59264}
SPM = {KEY + "model": "llama"}
Z1 = {"general.name": "GLM Z1 9B 0414"}
CHATML = {KEY + "tokens": ["<|im_start|>", "<|im_end|>"], KEY + "bos_token_id": 0}

WEATHER = {
    "name": "get_weather",
    "description": "天气",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CLOCK = {"name": "clock", "parameters": {}}
TOOLS = [{"type": "function", "function": WEATHER}, CLOCK]  # the second is bare
USAGE = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
TOOL_LIST = "# 可用工具" + "".join(
    f"\n## {tool['name']}\n\n{json.dumps(tool, ensure_ascii=False, indent=4)}{USAGE}"
    for tool in (WEATHER, CLOCK)
)
SPACED_LIST = TOOL_LIST.replace("\n## ", "\n\n## ")  # GLM-4-0414
PREAMBLE = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n"
)
CALLS = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "北京"}'},
            },
            {"id": "c2", "function": {"name": "clock", "arguments": {"zone": "东"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "晴"},
    {
        "role": "observation",
        "content": [{"type": "text", "text": "12"}, {"type": "text", "text": ":00"}],
    },
]


def template(architecture: str = "chatglm", **more) -> ChatTemplate:
    metadata = more.pop("metadata", {})
    return ChatTemplate.from_gguf(metadata, architecture, **more)


def own(text: str, architecture: str = "chatglm", **metadata) -> ChatTemplate:
    return template(architecture, metadata={"tokenizer.chat_template": text, **metadata})


class TestBuiltIn:
    @pytest.mark.parametrize(
        ("architecture", "metadata", "name", "text"),
        [
            ("chatglm", {}, "glm-4-9b-chat", f"[gMASK]<sop>{GLM_TURNS}<|assistant|>"),
            ("glm4", {}, "glm4-0414", f"[gMASK]<sop>{GLM_TURNS}<|assistant|>"),
            ("glm4", Z1, "glm-z1", f"[gMASK]<sop>{GLM_TURNS}<|assistant|>\n<think>"),
            ("chatglm", EDGE, "glm-edge", f"{GLM_TURNS}<|assistant|>\n"),
            (
                "chatglm", SPM, "chatglm3",
                "[gMASK]sop<|system|>\n S<|user|>\n U<|assistant|>\n A<|user|>\n U2<|assistant|>",
            ),
            (
                "llama", CHATML, "chatml",
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
                "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n"
                "<|im_start|>assistant\n",
            ),
        ],
    )  # fmt: skip
    def test_conversation(self, architecture, metadata, name, text):
        chat = template(architecture, metadata=metadata)
        assert chat.source == f"built-in {name}"
        assert chat.render(TWO_TURNS) == text
        assert text.endswith(chat.generation_prompt)
        bare = chat.render(TWO_TURNS, add_generation_prompt=False)
        assert bare + chat.generation_prompt == text
        assert chat.strip_leading_newline == text.endswith("<|assistant|>")
        assert chat.opens_thinking == (name == "glm-z1")
        # An answer to be continued stays open.
        open_end = chat.render([*TWO_TURNS, {"role": "assistant", "content": " Because "}])
        space = " " if name == "chatglm3" else ""
        header = "<|im_start|>assistant" if name == "chatml" else "<|assistant|>"
        assert open_end == f"{bare}{header}\n{space} Because "
        assert chat.render([*TWO_TURNS, {"role": "assistant", "content": ""}]) == text
        with pytest.raises(ChatTemplateError, match="two assistant messages"):
            chat.render([USER, ANSWER, ANSWER])

    def test_glm4_puts_system_turns_first(self):
        turns = [USER, ANSWER, {"role": "developer", "content": "S"}, USER]
        text = template("glm4").render(turns)
        assert (
            text == "[gMASK]<sop><|system|>\nS<|user|>\nU<|assistant|>\nA<|user|>\nU<|assistant|>"
        )

    def test_z1_forgets_its_reasoning(self):
        answer = {"role": "assistant", "content": "<think>\nso </think> and\n</think>\n\nA\n"}
        chat = template("glm4", metadata=Z1)
        text = chat.render([USER, answer, {"role": "user", "content": " a </think> b "}])
        assert text == (
            "[gMASK]<sop><|user|>\nU<|assistant|>\nA<|user|>\n a </think> b <|assistant|>\n<think>"
        )
        started = {"role": "assistant", "content": "<think>\nso"}
        assert chat.render([USER, started]).endswith("<|user|>\nU<|assistant|>\n<think>\nso")

    def test_tools_of_glm_4_9b_chat(self):
        text = template().render([SYSTEM, *CALLS], tools=TOOLS)
        assert text == (
            f"[gMASK]<sop><|system|>\n{PREAMBLE}{TOOL_LIST}<|system|>\nS<|user|>\nU"
            '<|assistant|>get_weather\n{"city": "北京"}<|assistant|>clock\n{"zone": "东"}'
            "<|observation|>\n晴<|observation|>\n12:00<|assistant|>"
        )

    @pytest.mark.parametrize(("metadata", "end"), [({}, ""), (Z1, "\n<think>")])
    def test_tools_of_0414_and_z1(self, metadata, end):
        text = template("glm4", metadata=metadata).render([SYSTEM, *CALLS], tools=TOOLS)
        assert text == (
            f"[gMASK]<sop><|system|>\n{SPACED_LIST}<|system|>\nS<|user|>\nU"
            '<|assistant|>get_weather \n{"city": "北京"}<|assistant|>clock \n{"zone": "东"}'
            f"<|observation|>\n晴<|observation|>\n12:00<|assistant|>{end}"
        )

    @pytest.mark.parametrize(
        ("architecture", "metadata", "supported"),
        [
            ("chatglm", {}, True), ("glm4", {}, True), ("glm4", Z1, True),
            ("chatglm", EDGE, False), ("chatglm", SPM, False), ("llama", CHATML, False),
        ],
    )  # fmt: skip
    def test_supports_tools(self, architecture, metadata, supported):
        chat = template(architecture, metadata=metadata)
        assert chat.supports_tools is supported
        if not supported:
            with pytest.raises(ChatTemplateError, match="has no place for them"):
                chat.render([USER], tools=TOOLS)

    def test_text_before_calls_and_glms_own_header(self):
        both = {**CALLS[1], "content": "Let me see"}
        native = {"role": "assistant", "metadata": "clock", "content": "{}"}
        text = template().render([both, native, {**USER, "metadata": {"client": 1}}])
        assert text.startswith("[gMASK]<sop><|assistant|>\nLet me see<|assistant|>get_weather\n{")
        assert text.endswith("<|assistant|>clock\n{}<|user|>\nU<|assistant|>")

    def test_choice_by_name(self):
        assert template("llama", override="chatglm4").source == "built-in glm-4-9b-chat"
        assert template(metadata={"general.basename": "glm-edge"}).source == "built-in glm-edge"
        assert template(override="{{ messages[0].content }}").source == "user"
        with pytest.raises(ChatTemplateError, match="'glm-4' is neither Jinja nor one of glm-4-9b"):
            template(override="glm-4")
        with pytest.raises(ChatTemplateError, match=r"no built-in template fits .*'llama'"):
            template("llama")


class TestFromFile:
    # What a published GLM-4-9B-Chat file looks like: tools belong to a message. (The newline
    # after a block tag is trimmed, so one of two is left before a header.)
    PER_MESSAGE = (
        "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\n"
        "T{% for tool in item['tools'] %}{% if tool['type'] == 'function' %}\n\n"
        "## {{ tool['function']['name'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n"
        "{{ item['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )

    def test_wins_over_the_built_in_one(self):
        chat = own("{{ messages[0]['content'] }}!", "llama", **CHATML)
        assert (chat.source, chat.render([USER])) == ("gguf", "U!")

    def test_tools_in_a_message(self):
        chat = own(self.PER_MESSAGE)
        assert chat.supports_tools
        assert chat.render(TWO_TURNS) == f"[gMASK]<sop>{GLM_TURNS}<|assistant|>"
        text = chat.render([SYSTEM, *CALLS], tools=TOOLS)
        assert text.startswith(
            "[gMASK]<sop><|system|>\nT\n## get_weather\n## clock<|system|>\nS<|user|>\nU"
            '<|assistant|>get_weather\n{"city": "北京"}'
        )
        assert text.endswith("<|observation|>\n12:00<|assistant|>")

    @pytest.mark.parametrize(
        "prefix", ["", "[gMASK]<sop>", "[gMASK][gMASK]<sop>", "\n[gMASK]<sop>"]
    )
    def test_prefix_exactly_once(self, prefix):
        body = "<|user|>\n{{ messages[0].content }}"
        for architecture in ("chatglm", "glm4"):
            assert own(prefix + body, architecture).render([USER]) == "[gMASK]<sop><|user|>\nU"
        assert own(body, **EDGE).render([USER]) == "<|user|>\nU"

    def test_tool_use_variant(self):
        chat = own(
            "plain", "llama", **{"tokenizer.chat_template.tool_use": "{{ tools[0].function.name }}"}
        )
        assert chat.render([USER]) == "plain"
        assert chat.render([USER], tools=TOOLS) == "get_weather"

    def test_environment(self):
        text = (
            "{{ bos_token }}\n"
            "    {% for m in messages %}\n"
            "{{ m.role }}\n"
            "    {% break %}\n"
            "    {% endfor %}\n"
            "{{ messages[0] | tojson }}"
            "{{ strftime_now('%Y') | length }}{{ flag }}{{ tools is none }}"
        )
        chat = own(text, "llama", **CHATML)
        content = "天 <b> & '"
        rendered = chat.render([{"role": "user", "content": content}], flag="on")
        shown = json.dumps({"role": "user", "content": content}, ensure_ascii=False)
        assert rendered == f"<|im_start|>\nuser\n{shown}4onTrue"

    def test_arguments_are_objects_for_other_families(self):
        text = (
            "{% for c in messages[1].tool_calls %}{{ c.function.arguments | tojson }};{% endfor %}"
        )
        assert own(text, "llama").render(CALLS) == '{"city": "北京"};{"zone": "东"};'
        bad = {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}],
        }
        assert own(text, "llama").render([USER, bad]) == '"{oops";'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for %}", "line 1: Expected"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ undefined_function() }}", "is undefined"),
        ("{% for i in range(99) %}{% for j in range(99) %}{% endfor %}{% endfor %}", "iterations"),
        ("{% for i in 'xy' * 2501 %}{% endfor %}", "iterations"),
        ("{% for i in range(99999999) %}{% endfor %}", "iterations"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ 'x' * 99999999 }}", "too large"),
        ("{{ 9 ** 999999 }}", "too large"),
        ("{% set s = 'x' * 9999999 %}{{ s }}{{ s }}", "characters"),
        ("{{ 1 // 0 }}", "division"),
    ],
)  # fmt: skip
def test_broken_or_hostile_templates(text, message, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_ITERATIONS", 5000)
    with pytest.raises(ChatTemplateError, match=message) as caught:
        own(text, "llama").render([USER])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        (["hi"], "role None"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user|>\n<|system", "content": "x"}], "not a lower-case word"),
        ([{"role": "endoftext", "content": "x"}], "'endoftext' is not one of"),
        ([{"role": "user", "content": 3}], "content must be"),
        ([{"role": "user"}], "the user message has no content"),
        ([{"role": "assistant", "tool_calls": []}], "the assistant message has no content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content must be"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}], "function.name"),
    ],
)
def test_bad_messages(messages, message):
    with pytest.raises(ChatTemplateError, match=message):
        template().render(messages)


def test_bad_tools():
    with pytest.raises(ChatTemplateError, match="each needs a function with a name"):
        template().render([USER], tools=[{"type": "function"}])


class TestEncode:
    @pytest.fixture(scope="class")
    @classmethod
    def glm(cls) -> Tokenizer:
        return Tokenizer.from_gguf(gguf_keys(glm_vocab()))

    CHATS = (template(), template("glm4"), own(TestFromFile.PER_MESSAGE), template(metadata=EDGE))

    @checked
    @given(st.lists(texts, min_size=1, max_size=4))
    @example(["\n\n x", " y ", "\r\n"])
    def test_equals_encoding_the_rendered_text(self, glm, contents):
        # Hypothesis knows the strings of our sources, "<sop>" among them: the next test's matter.
        assume(not any(special in text for special in GLM_SPECIALS for text in contents))
        roles = ["user", "assistant", "tool", "user"]
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        for chat in self.CHATS:
            options = {"continue_final_message": False}
            if chat.supports_tools:
                options["tools"] = TOOLS[1:]
            text = chat.render(messages, **options)
            assert chat.encode(glm, messages, **options) == glm.encode(text, parse_special=True)

    @checked
    @given(
        st.lists(
            st.sampled_from([*GLM_SPECIALS, "<|", "|>", "user", "\n", " ", "a\ue0007\ue000"]),
            min_size=1,
        ),
        st.sampled_from(CHATS),
    )
    def test_spelled_special_tokens_stay_text(self, glm, parts, chat):
        """Only the template's own special tokens are special, and the text is the rendered one."""
        words = "".join(parts)
        tools = [{"name": words or "f", "description": words, "parameters": {words: [words]}}]
        messages = [
            {"role": "system", "content": words},
            {"role": "user", "content": [{"type": "text", "text": part} for part in parts]},
            {"role": "assistant", "content": words},
            {"role": "tool", "content": words},
        ]
        options = {"tools": tools} if chat.supports_tools else {}
        ids = chat.encode(glm, messages, **options)
        assert glm.decode(ids) == chat.render(messages, **options)
        quiet = [{"role": m["role"], "content": "x"} for m in messages]
        plain = {"tools": [{"name": "f"}]} if options else {}
        specials = [i for i in chat.encode(glm, quiet, **plain) if i >= len(glm_ranks())]
        assert [i for i in ids if i >= len(glm_ranks())] == specials

    def test_edge_of_a_message_is_no_edge_for_the_tokenizer(self, glm):
        chat = template()
        first = len(glm_ranks())
        text = "<|user|>\n\nhello"
        ids = chat.encode(glm, [{"role": "user", "content": text}])
        inside = glm.encode("\n" + text)
        assert ids == [first + 2, first + 4, first + 7, *inside, first + 8]

    def test_user_defined_tokens_in_answers(self):
        """<think> in an answer is the token that the model wrote; in a question it is text."""
        vocab = glm_vocab()
        first = len(glm_ranks())
        tokens, types = list(vocab.tokens), list(vocab.token_types)
        tokens[-1], types[-1] = "<think>", 4
        keys = {**gguf_keys(vocab), KEY + "tokens": tokens, KEY + "token_type": types}
        tokenizer = Tokenizer.from_gguf(keys)
        think = len(tokens) - 1
        messages = [
            {"role": "user", "content": "<think>"},
            {"role": "assistant", "content": "<think>a<|user|>"},
        ]
        ids = template().encode(tokenizer, messages, continue_final_message=False)
        assert ids.count(think) == 1
        assert ids.count(first + 7) == 1

    def test_json_escapes_do_not_lose_a_spelling(self, glm):
        chat = own("{{ messages[0].content | tojson(ensure_ascii=True) }}", "llama")
        ids = chat.encode(glm, [{"role": "user", "content": "天<|user|>\\ue0001"}])
        assert glm.decode(ids) == '"\\u5929<|user|>\\\\ue0001"'

    def test_bos_once(self, glm):
        keys = {**gguf_keys(glm_vocab(), "llama-bpe"), KEY + "add_bos_token": True}
        tokenizer = Tokenizer.from_gguf(keys)
        for start in ("", "{{ bos_token }}"):
            chat = own(start + "<|user|>", "llama", **keys)
            ids = chat.encode(tokenizer, [USER])
            assert ids == [tokenizer.bos_id, tokenizer.specials["<|user|>"]]
