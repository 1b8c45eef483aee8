"""Functions that a model may call: how they reach a chat template, and what a template can do with them.

An app's list of tools and its calls do not reach the template as the app wrote them. Ollama reads them into its own types and
writes them anew (api/types.go, Tool and ToolCallFunctionArguments), and llama.cpp's server once more (common/chat.cpp,
common_chat_tools_to_json_oaicompat): keys come in another order, and those that these types do not know are gone. Training has
to show the model what it will be shown, so every rendering here is of that form.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from toolkit.errors import DataError
from toolkit.models.chat_template import NOTHING_TOLD, Messages, render_whole

Tools = list[dict[str, Any]]
_PROPERTY = ("anyOf", "type", "items", "description", "enum", "properties", "required")
"""Of a parameter, in the order in which Ollama writes them (api/types.go, ToolProperty)."""
_LARGEST_WHOLE = 2.0**53
_NAME, _KEY, _VALUE, _RESULT = "stand_in_function", "stand_in_key", "stand-in value", "(stand-in for a result)"
STAND_IN: Tools = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "",
            "parameters": {"type": "object", "required": [_KEY], "properties": {_KEY: {"type": "string"}}},
        },
    }
]
CALL_ID = "call00001"
"""Nine letters and digits, the only form of a tool call's id that Mistral's templates accept."""
NO_TOOLS, NO_CALLS, NO_RESULTS = "the functions themselves", "calls", "results of calls"


def as_sent(tools: Tools | None) -> Tools | None:
    """A list of tools as a chat template is given it when an app sends it to Ollama.

    Args:
        tools: as OpenAI's API takes them, or the functions alone.
    """
    return [_tool(tool) for tool in tools] if tools else None


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    given = function.get("parameters") or {}
    # A function without parameters: what Ollama makes of a missing object is refused by llama.cpp's server.
    parameters: dict[str, Any] = {"type": given.get("type") or "object"}
    for key in ("$defs", "items"):
        if given.get(key) is not None:
            parameters[key] = _any(given[key])
    if given.get("required"):
        parameters["required"] = list(given["required"])
    parameters["properties"] = {name: _property(one) for name, one in (given.get("properties") or {}).items()}
    made = {"name": function["name"], "description": function.get("description") or "", "parameters": parameters}
    return {"type": "function", "function": made}


def _property(given: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key in _PROPERTY:
        value = given.get(key)
        if value is None or (key != "properties" and not value):
            continue
        if key == "anyOf":
            made[key] = [_property(one) for one in value]
        elif key == "type":
            made[key] = value[0] if isinstance(value, list) and len(value) == 1 else value
        elif key == "properties":
            made[key] = {name: _property(one) for name, one in value.items()}
        else:
            made[key] = _any(value)
    return made


def _any(value: Any) -> Any:
    """A value of no particular type, as Go reads and writes one: keys sorted, whole numbers without a point."""
    if isinstance(value, dict):
        return {key: _any(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_any(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_WHOLE:
        return int(value)
    return value


def call_as_sent(call: dict[str, Any]) -> dict[str, Any]:
    """A call as a chat template is given it when an app sends it back: arguments keep their order, what is in them does not."""
    function = call.get("function", call)
    arguments = {name: _any(value) for name, value in arguments_of(call).items()}
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if call.get("id") else made


def arguments_of(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, which OpenAI's API has as a text."""
    found = call.get("function", call).get("arguments")
    if isinstance(found, str):
        found = json.loads(found or "{}")
    return dict(found or {})


def names_and_arguments(calls: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """What calls ask for, in a form that can be compared: name, arguments as JSON."""
    return [
        (str(call["function"]["name"]), json.dumps(_any(arguments_of(call)), sort_keys=True, ensure_ascii=False))
        for call in calls
    ]


def not_sent(tools: Tools) -> set[str]:
    """Keys of a list of tools that no template behind Ollama is shown, by name."""
    return set().union(*(_keys(tool) for tool in tools)) - set().union(*(_keys(tool) for tool in as_sent(tools) or []))


def _keys(value: Any, inside: str = "") -> set[str]:
    """Names of keys of a schema; those of `properties` and `$defs` are the user's own."""
    if isinstance(value, list):
        return set().union(*(_keys(one, inside) for one in value))
    if not isinstance(value, dict) or inside in {"enum", "default", "const", "examples"}:
        return set()
    named = inside in {"properties", "$defs"}
    return set().union(
        *(({key} if not named else set()) | _keys(one, "" if named else key) for key, one in value.items())
    )


def wants(row: Mapping[str, Any]) -> set[str]:
    """What a row needs of a template: `NO_TOOLS`, `NO_CALLS`, `NO_RESULTS`."""
    turns = [turn for key in ("prompt", "completion", "chosen", "rejected") for turn in row.get(key, ())]
    found = {NO_TOOLS} if row.get("tools") else set()
    found |= {NO_CALLS} if any(turn.get("tool_calls") for turn in turns) else set()
    return found | ({NO_RESULTS} if any(turn["role"] == "tool" for turn in turns) else set())


def cannot_write(template: str, fields: Mapping[str, Any] = NOTHING_TOLD) -> set[str]:
    """What of `NO_TOOLS`, `NO_CALLS`, `NO_RESULTS` a template does not write; asked by giving it one of each.

    Args:
        fields: that it is rendered with.
    """
    return set(_cannot_write(template, json.dumps(dict(fields), sort_keys=True)))


@functools.lru_cache(maxsize=64)
def _cannot_write(template: str, told: str) -> frozenset[str]:
    fields = json.loads(told)
    question: Messages = [{"role": "user", "content": "?"}]
    call = {"id": CALL_ID, "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
    called: Messages = [*question, {"role": "assistant", "content": "", "tool_calls": [call]}]
    answered: Messages = [*called, {"role": "tool", "name": _NAME, "tool_call_id": CALL_ID, "content": _RESULT}]
    listed = render_whole(template, question, "", "", STAND_IN, True, **fields) or ""
    # Some take calls only where there are tools, and some write no tools where there are calls.
    asked = render_whole(template, called, "", "", STAND_IN, **fields) or ""
    answered_text = render_whole(template, answered, "", "", STAND_IN, True, **fields) or ""
    found = set() if _NAME in listed else {NO_TOOLS}
    found |= set() if shows_call(asked.removeprefix(listed), _NAME, _VALUE) else {NO_CALLS}
    return frozenset(found if _RESULT in answered_text else {*found, NO_RESULTS})


def require_tools(template: str, wanted: set[str], fields: Mapping[str, Any] = NOTHING_TOLD) -> None:
    """Raise where a template does not write what rows hold.

    Args:
        wanted: of `wants`.

    Raises:
        DataError: with what it leaves out.
    """
    if wanted and (lacking := wanted & cannot_write(template, fields)):
        raise DataError(
            f"the base's chat template does not write {' and '.join(sorted(lacking))}, which the rows hold",
            "Choose a base whose template takes tools, or train with another template: --set train.chat_template=FILE "
            "(recipes/tools.jinja is one for bases that know ChatML).",
        )


def shows_call(text: str, name: str, value: str) -> bool:
    """Whether a name and a value of an argument both stand in a text."""
    return name in text and value in text


def calls_in(text: str) -> list[dict[str, Any]]:
    """Calls in a text, written as JSON objects with a name and arguments, as most templates do; whatever is around them."""
    found, at, decoder = [], text.find("{"), json.JSONDecoder()
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            end = at + 1
        else:
            arguments = value.get("arguments", value.get("parameters"))
            if isinstance(value.get("name"), str) and isinstance(arguments, dict):
                found.append({"type": "function", "function": {"name": value["name"], "arguments": arguments}})
        at = text.find("{", end)
    return found


def offered(calls: Iterable[dict[str, Any]], tools: Tools) -> bool:
    """Whether calls are of these functions, with all arguments that are required, and none of another type or beside an `enum`:
    a server makes others impossible where it reads calls by a grammar.
    """
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    return all(
        call["function"]["name"] in known and _fit(arguments_of(call), known[call["function"]["name"]])
        for call in calls
    )


def _fit(arguments: dict[str, Any], parameters: dict[str, Any]) -> bool:
    properties = parameters.get("properties") or {}
    if set(parameters.get("required", [])) - set(arguments) or set(arguments) - set(properties):
        return False
    return all(_is_a(value, properties[name]) for name, value in arguments.items())


def _is_a(value: Any, schema: dict[str, Any]) -> bool:
    kinds = schema.get("type") or []
    names = [kinds] if isinstance(kinds, str) else kinds
    if schema.get("enum") and value not in schema["enum"]:
        return False
    return not names or any(_IS[kind](value) for kind in names if kind in _IS)


_IS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
