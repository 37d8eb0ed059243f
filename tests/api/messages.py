"""Messages and reply objects for the tests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def user(text: str) -> dict[str, Any]:
    """Return a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}


def calls(*ids: str) -> dict[str, Any]:
    """Return an assistant's message that calls tools."""
    made = [{"id": id_, "type": "function", "function": {"name": "look", "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(id_: str, text: str = "found") -> dict[str, Any]:
    """Return a tool's message."""
    return {"role": "tool", "tool_call_id": id_, "content": text}


class Function(BaseModel):
    """As in the OpenAI SDK."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """As in the OpenAI SDK."""

    id: str
    type: str = "function"
    function: Function


class ChatMessage(BaseModel):
    """As in the OpenAI SDK: fields that are not there are None."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """As in the OpenAI SDK."""

    index: int = 0
    finish_reason: str = "stop"
    message: ChatMessage


class ChatCompletion(BaseModel):
    """As in the OpenAI SDK."""

    id: str = "chatcmpl-1"
    choices: list[Choice]


class Block(BaseModel):
    """As in the Anthropic SDK, of any type."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class AnthropicMessage(BaseModel):
    """As in the Anthropic SDK."""

    id: str = "msg_1"
    type: str = "message"
    role: str = "assistant"
    model: str = "claude"
    content: list[Block]
    stop_reason: str = "end_turn"
