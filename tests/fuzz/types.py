"""The types of requests of the providers' SDKs, where these are installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def sdk_types() -> Callable[[str, Any], None] | None:
    """Return what checks a request by the types of its provider's SDK; None without the SDKs."""
    try:
        from anthropic.types import MessageParam, TextBlockParam
        from openai.types.chat import ChatCompletionMessageParam
        from pydantic import TypeAdapter
    except ImportError:
        return None
    openai: TypeAdapter[Any] = TypeAdapter(list[ChatCompletionMessageParam])
    messages: TypeAdapter[Any] = TypeAdapter(list[MessageParam])
    system: TypeAdapter[Any] = TypeAdapter(list[TextBlockParam])

    def check(provider: str, request: Any) -> None:
        if provider == "openai":
            exhaust(openai.validate_python(request))
        else:
            exhaust(messages.validate_python(request["messages"]))
            exhaust(system.validate_python(request["system"]))

    return check


def exhaust(value: Any) -> None:
    """Walk through a validated value: pydantic checks the items of an `Iterable` only when they are asked for."""
    if isinstance(value, Mapping):
        for item in value.values():
            exhaust(item)
    elif not isinstance(value, str | bytes) and hasattr(value, "__iter__"):
        for item in value:
            exhaust(item)
