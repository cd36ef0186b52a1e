"""The chat encoding of DeepSeek-V3.2 (final), as far as the generated conversations use it.

A conversation is rendered to segments (text, is_answer): is_answer marks what the assistant writes, which is what the
model is trained on.  Segments meet only at special tokens, so each can be tokenized alone.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, THINK, END_THINK, DSML = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"
TOOL_TOKENS = tuple(
    f"<｜{name}｜>" for name in
    ("tool▁calls▁begin", "tool▁calls▁end", "tool▁call▁begin", "tool▁call▁end", "tool▁output▁begin", "tool▁output▁end", "tool▁sep")
)  # of the V3.2-Exp format

TOOLS_PREFIX = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{DSML}function_calls>" block like the following as part of your reply to the user:
<{DSML}function_calls>
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$FUNCTION_NAME2">
...
</{DSML}invoke>
</{DSML}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<{DSML}function_calls>
...
</{DSML}function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"""
TOOLS_SUFFIX = "\n</functions>\n"


@dataclass
class Turn:
    """One exchange: the user's message and what the assistant answers."""

    user: str
    answer: str
    reasoning: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # calls before the answer
    results: list[str] = field(default_factory=list)  # one result a call, in order


Segments = list[tuple[str, bool]]


def render_tools(functions: list[dict[str, Any]]) -> str:
    """The tools part of a system message; each function is an OpenAI-style function object."""
    return TOOLS_PREFIX + "\n".join(json.dumps(f, ensure_ascii=False) for f in functions) + TOOLS_SUFFIX


def render_calls(calls: list[tuple[str, dict[str, Any]]]) -> str:
    """The DSML block of some calls, with the blank line before it."""
    parts = []
    for name, arguments in calls:
        lines = []
        for key, value in arguments.items():
            is_string = isinstance(value, str)
            text = value if is_string else json.dumps(value, ensure_ascii=False)
            lines.append(f'<{DSML}parameter name="{key}" string="{"true" if is_string else "false"}">{text}</{DSML}parameter>')
        parts.append(f'<{DSML}invoke name="{name}">\n' + "\n".join(lines) + f"\n</{DSML}invoke>")
    return f"\n\n<{DSML}function_calls>\n" + "\n".join(parts) + f"\n</{DSML}function_calls>"


def render(turns: list[Turn], system: str = "", functions: list[dict[str, Any]] | None = None, thinking: bool = False) -> Segments:
    """Segments of a whole conversation, ending with the last answer's end-of-sentence token.

    With thinking, only the last turn's reasoning is shown, as the format drops that of earlier turns.
    """
    if functions:
        system += "\n\n" + render_tools(functions)
    segments: Segments = [(BOS + system, False)]
    for index, turn in enumerate(turns):
        shows_reasoning = thinking and index == len(turns) - 1
        opening = THINK if shows_reasoning else END_THINK
        reasoning = turn.reasoning + END_THINK if shows_reasoning else ""
        segments.append((USER + turn.user + ASSISTANT + opening, False))
        if turn.calls:
            segments.append((reasoning + render_calls(turn.calls) + EOS, True))
            results = "".join(f"\n<result>{r}</result>" for r in turn.results)
            segments.append((f"\n\n<function_results>{results}\n</function_results>\n\n" + opening, False))
            reasoning = END_THINK if shows_reasoning else ""
        segments.append((reasoning + turn.answer + EOS, True))
    return segments
