"""A support conversation over two sessions: what is kept, what the model is shown, and what it cost.

Run it with `python examples/quickstart.py`. It needs nothing: SQLite and a private Valkey in `./.scrubjay`.
Set SCRUBJAY_STORE and SCRUBJAY_CACHE to run it against servers of your own.
"""

import asyncio
from typing import Any

from scrubjay import AsyncScrubjay, Window


async def ask_model(window: Window) -> dict[str, Any]:
    """Stand for `client.chat.completions.create(model=…, messages=window.to_openai())`."""
    question = window.to_openai()[-1]["content"]
    return {"role": "assistant", "content": f"You asked: {question} Your refund went out on Monday."}


async def main() -> None:
    """Run it."""
    async with AsyncScrubjay.open() as jay:
        shop = jay.tenant("acme")
        alice = shop.user("alice")
        await alice.forget()  # so that each run prints the same

        await shop.agents.set("support", {"system_prompt": "You help customers of a web shop.", "temperature": 0.2})
        await alice.memory.update({"communication_style": "prefers concise answers", "language": "en"})
        await alice.contexts.set("profile", {"plan": "pro", "timezone": "America/Los_Angeles"})

        session = alice.session("monday")
        await session.chat.append(role="user", content="Where is my refund for ORD-12345?")
        await session.chat.append(
            role="assistant",
            tool_calls=[{"id": "call_1", "type": "function", "function": {"name": "lookup_order", "arguments": "{}"}}],
        )
        output = {"order": "ORD-12345", "status": "refunded"}
        await session.tools.record(name="lookup_order", output=output, tool_call_id="call_1")
        await session.chat.append(role="tool", tool_call_id="call_1", content="refunded on Monday")
        await session.state.set("topic", "billing", ttl=3600)

        window = await session.assemble(budget=4000, agent="support")
        await session.chat.append(await ask_model(window))
        print(f"monday:  {window.receipt.total_tokens} tokens from {', '.join(window.receipt.sources_used)}")

        summary = await session.close()
        print(f"summary: {summary.text.splitlines()[0] if summary else None}")

        later = alice.session("tuesday")
        await later.chat.append(role="user", content="It is still not there.")
        window = await later.assemble(budget=4000, agent="support")
        print(f"tuesday: {window.receipt.total_tokens} tokens from {', '.join(window.receipt.sources_used)}")

        print(f"stored:  {sum(map(len, (await alice.export()).values()))} rows")
        receipt = await alice.forget()
        print(f"erased:  {sum(receipt['rows'].values())} rows, cache {receipt['cache']}")


if __name__ == "__main__":
    asyncio.run(main())
