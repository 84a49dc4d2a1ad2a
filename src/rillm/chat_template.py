"""Chat messages to the prompt a model was trained on.

The template in the GGUF wins over the built-in one for the model. Messages are OpenAI's; for
GLM they are first put into its own form (tool results are the role `observation`, a call is an
assistant turn whose `metadata` names the tool), which GLM's published templates also expect.

`render()` is for eyes; the engine uses `encode()`. There, what messages and tools *say* never
becomes a special token, even where it spells one: the spelling is masked with a private-use
character before the template sees it, the text is then cut at the special tokens of the template
itself, and the spelling is put back in the stretches between, which are encoded as plain text. A
stretch goes through the tokenizer whole, so merges see across the edge of a message exactly as
they would in the rendered text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rillm.chat_templates import (
    BUILTIN_NAMES,
    PREFIXES,
    ChatTemplateError,
    builtin_name,
    builtin_text,
    choose_builtin,
)
from rillm.chat_templates.masking import ChatTokenizer, Mask, strings, unused_char
from rillm.chat_templates.messages import glm_turns, normalize, parsed_calls, wrapped_tool

__all__ = ["ChatTemplate", "ChatTemplateError"]

_KEY = "tokenizer.chat_template"
_GLM_PREFIX = re.compile(r"\s*(?:\[gMASK\](?:<sop>|sop)?|<sop>)+")

Message = Mapping[str, Any]


class ChatTemplate:
    """How one model's conversations are written.

    `source`: "gguf", "user" or "built-in NAME".
    """

    def __init__(
        self,
        text: str,
        *,
        source: str,
        family: str | None = None,
        tool_text: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """`family`: the built-in template that fits the model; `tool_text`: used with tools."""
        # jinja2 is a third of the time to import an engine; who needs no chat starts without it.
        from rillm.chat_templates.sandbox import SandboxedTemplate

        self.text = text
        self.source = source
        self._template = SandboxedTemplate(text)
        self._tool_template = SandboxedTemplate(tool_text) if tool_text else self._template
        self._is_glm = family in PREFIXES
        self._prefix = PREFIXES.get(family or "", "")
        self._variables = dict(variables or {})

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, object],
        architecture: str,
        *,
        override: str | None = None,
    ) -> ChatTemplate:
        """From the file's keys; `override` is the name of a built-in template or Jinja source.

        Raises ChatTemplateError if the file has no template and no built-in one fits.
        """
        family = choose_builtin(metadata, architecture)
        own, tool_text = metadata.get(_KEY), metadata.get(f"{_KEY}.tool_use")
        text, source = (own, "gguf") if isinstance(own, str) and own.strip() else ("", "")
        if override is not None:
            text, source, tool_text = override, "user", None
        named = builtin_name(text.strip())
        if override is not None and named is None and "{" not in override:
            known = ", ".join(BUILTIN_NAMES)
            raise ChatTemplateError(
                f"--chat-template: {override.strip()[:40]!r} is neither Jinja nor one of {known}"
            )
        if named is None and not source:
            named = family
        if named is not None:
            text, source, tool_text = builtin_text(named), f"built-in {named}", None
            if override is not None:
                family = named
        elif not source:
            raise ChatTemplateError(
                f"{_KEY} is missing and no built-in template fits architecture {architecture!r};"
                " give one with --chat-template"
            )
        return cls(
            text,
            source=source,
            family=family,
            tool_text=tool_text if isinstance(tool_text, str) else None,
            variables=_token_variables(metadata),
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt as text.

        `continue_final_message`: leave a final assistant message open instead of starting a new
        one; None does so if the last message is an assistant's and a generation prompt is wanted.
        `kwargs` are the template's own switches.
        """
        turns = [normalize(message) for message in messages]
        if not turns:
            raise ChatTemplateError("messages: at least one message is needed")
        last = turns[-1]
        open_end = continue_final_message
        if open_end is None:
            is_answer = last["role"] == "assistant" and not last.get("tool_calls")
            open_end = add_generation_prompt and is_answer
        partial = ""
        if open_end:
            if last["role"] != "assistant" or last.get("tool_calls"):
                raise ChatTemplateError("messages: only a final assistant text can be continued")
            if len(turns) > 1 and turns[-2]["role"] == "assistant":
                raise ChatTemplateError("messages: two assistant messages at the end")
            partial = last["content"]
            if not partial:  # nothing is open yet: the same as a generation prompt
                open_end, add_generation_prompt = False, True
                turns.pop()
        if not open_end:
            return self._text(turns, tools, add_generation_prompt, kwargs)
        mark = unused_char([self.text, *strings([turns, tools, kwargs])]) * 3
        turns[-1] = {**last, "content": mark}
        before, *after = self._text(turns, tools, False, kwargs).split(mark)
        if len(after) != 1:
            raise ChatTemplateError("chat template: it cannot show an unfinished assistant message")
        return before + partial

    def encode(
        self,
        tokenizer: ChatTokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of render(), where only the template's own special tokens are special.

        An assistant message may also hold user-defined tokens (such as <think>), which the
        model writes itself; control tokens it may not.
        """
        turns = [normalize(message) for message in messages]  # joins text parts: mask the whole
        mask = Mask(tokenizer, [self.text, *strings([turns, tools, kwargs])])
        text = self.render(
            [
                {k: v if k == "role" else mask.hide(v, turn) for k, v in turn.items()}
                for turn in turns
            ],
            tools=mask.hide(tools),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **mask.hide(kwargs),
        )
        ids: list[int] = []
        for part in tokenizer.split_special(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += tokenizer.encode(mask.show(part))
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template shows the tools it is given."""
        return self._tools_in_message or self._shows_tools(in_message=False)

    @cached_property
    def generation_prompt(self) -> str:
        """What add_generation_prompt adds after a user's message."""
        turns = [{"role": "user", "content": "x"}]
        without = self._text(turns, None, False, {})
        return self._text(turns, None, True, {}).removeprefix(without)

    @property
    def strip_leading_newline(self) -> bool:
        """Whether an answer begins with a newline of the format's, which is not its text.

        The prompt then ends in a bare <|assistant|>, and GLM writes the newline itself.
        """
        return self._is_glm and self.generation_prompt.endswith("<|assistant|>")

    @property
    def opens_thinking(self) -> bool:
        """Whether the prompt ends in <think>, so that an answer begins with reasoning."""
        return self.generation_prompt.rstrip().endswith("<think>")

    def _text(
        self,
        turns: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> str:
        if tools and not self.supports_tools:
            raise ChatTemplateError(f"tools: the {self.source} chat template has no place for them")
        return self._raw(
            turns, tools, add_generation_prompt, kwargs, bool(tools) and self._tools_in_message
        )

    def _raw(
        self,
        turns: list[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
        tools_in_message: bool,
    ) -> str:
        declared = [wrapped_tool(tool) for tool in tools] if tools else None
        if self._is_glm:
            turns = [glm for turn in turns for glm in glm_turns(turn)]
        else:
            turns = [parsed_calls(turn) for turn in turns]
        if tools_in_message:  # glm-4-9b-chat's published template looks for them there
            turns = [{"role": "system", "content": "", "tools": declared}, *turns]
            declared = None
        template = self._tool_template if tools else self._template
        text = template.render(
            {
                **self._variables,
                **kwargs,
                "messages": turns,
                "tools": declared,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        if self._prefix:
            found = _GLM_PREFIX.match(text)
            text = self._prefix + text[found.end() if found else 0 :]
        return text

    @cached_property
    def _tools_in_message(self) -> bool:
        return not self._shows_tools(in_message=False) and self._shows_tools(in_message=True)

    def _shows_tools(self, *, in_message: bool) -> bool:
        function = {"name": "probe_tool_name", "description": "", "parameters": {}}
        turns = [{"role": "user", "content": "x"}]
        try:
            text = self._raw(turns, [{"function": function}], True, {}, in_message)
        except ChatTemplateError:
            return False
        return "probe_tool_name" in text


def _token_variables(metadata: Mapping[str, object]) -> dict[str, str]:
    """bos_token and eos_token, as templates expect them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    variables = {}
    for name in ("bos", "eos"):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        known = isinstance(tokens, list) and isinstance(token_id, int)
        inside = known and 0 <= token_id < len(tokens)  # type: ignore[arg-type,operator]
        variables[f"{name}_token"] = str(tokens[token_id]) if inside else ""  # type: ignore[index]
    return variables
