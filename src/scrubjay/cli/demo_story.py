"""The story of the demonstration: two tenants, their users, and what is said. Written for it; nobody in it exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SHOP: Final = "larkspur-outdoor"
BANK: Final = "harbour-bank"
ALICE: Final = "alice"
BOB: Final = "bob"
FIRST_SESSION: Final = "sess_100"
SECOND_SESSION: Final = "sess_101"
AGENT: Final = "support"
BUDGET: Final = 2_000

AGENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    SHOP: {
        "system_prompt": (
            "You are the support agent of Larkspur Outdoor, a shop for tents and rucksacks. Look orders up before you "
            "promise anything, and say plainly what happens next."
        ),
        "model": "any-model",
        "temperature": 0.2,
        "refund_limit_eur": 150,
        "languages": ["en", "de"],
    },
    BANK: {
        "system_prompt": "You are the assistant of Harbour Bank. Never name an account number in full.",
        "model": "any-model",
        "temperature": 0.0,
    },
}

REFERENCE: Final[Mapping[str, Mapping[str, Any]]] = {
    SHOP: {
        "warranty": "Tent poles are replaced free of charge for three years.",
        "returns_days": 60,
        "express_eur": 9,
        "carriers": ["Fenwick Parcel", "Tidewater Post"],
    },
    BANK: {"card_block": "A lost card is blocked at once, day and night.", "new_card_days": 5},
}

PROFILES: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    (SHOP, ALICE): {"name": "Alice Varga", "plan": "trail club", "timezone": "Europe/Vienna", "since": 2019},
    (SHOP, BOB): {"name": "Bob Okafor", "plan": "guest", "timezone": "Europe/London", "since": 2024},
    (BANK, ALICE): {"name": "Alice Lindqvist", "segment": "student", "timezone": "Europe/Stockholm"},
}

PREFERENCES: Final = {"channel": "e-mail", "units": "metric"}

MEMORY: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    (SHOP, ALICE): {
        "communication_style": "wants short answers with dates in them",
        "delivery": "the parcel shop at Keplerplatz, never at home",
        "tent": "Heron 2, bought with order LK-20418",
    },
    (SHOP, BOB): {"boots": "size 44, returned one pair that was too narrow"},
    (BANK, ALICE): {"language": "prefers Swedish"},
}

ALICES_OWN: Final = ("Varga", "LK-20418", "Keplerplatz", "Heron", "RP-771")
"""Words that stand only in what is Alice's of the shop; nobody else's window may hold one."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call that the model makes, and what the tool returns."""

    name: str
    arguments: Mapping[str, Any]
    output: Any


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, the tools that the model then uses, its reply, and what the application notes."""

    user: str
    reply: str
    tools: tuple[ToolUse, ...] = ()
    state: Mapping[str, Any] | None = None


FIRST_DAY: Final = (
    Turn(
        "Hello, one pole of my tent snapped last night in the wind. The tent is from order LK-20418.",
        "I am sorry about the night you had. Your Heron 2 is from 14 May last year, so the pole is under warranty and "
        "costs you nothing. Shall I send a replacement?",
        (
            ToolUse(
                "look_up_order",
                {"order": "LK-20418"},
                {"order": "LK-20418", "item": "Heron 2 tent", "bought": "2025-05-14", "status": "delivered"},
            ),
        ),
        {"current_topic": "broken tent pole", "order": "LK-20418"},
    ),
    Turn(
        "Yes please. I leave for the mountains on Saturday, so it has to be here by Friday.",
        "Done: replacement RP-771 goes out today by express, free of charge, and is at the parcel shop at Keplerplatz "
        "on Thursday.",
        (
            ToolUse("check_stock", {"part": "Heron pole, section 3"}, {"part": "HP-3", "in_stock": 14}),
            ToolUse(
                "create_replacement",
                {"order": "LK-20418", "part": "HP-3", "shipping": "express"},
                {"replacement": "RP-771", "carrier": "Fenwick Parcel", "arrives": "2026-03-05", "cost_eur": 0},
            ),
        ),
        {"replacement": "RP-771", "arrives": "2026-03-05"},
    ),
    Turn(
        "Great. Do I have to send the broken pole back?",
        "No. Please recycle it as aluminium; we do not need it.",
        state={"return_needed": False},
    ),
    Turn("Perfect, that was quick. Thank you!", "Have a calm night up there, Alice."),
)

SECOND_DAY: Final = Turn(
    "Hi, it's me again. Has it left your house yet?",
    "Yes: RP-771 left us last night and is in Linz. It is at Keplerplatz on Thursday before noon.",
    (
        ToolUse(
            "track_parcel",
            {"replacement": "RP-771"},
            {"replacement": "RP-771", "events": ["packed 18:02", "left the house 19:40", "Linz 04:15"]},
        ),
    ),
    {"current_topic": "where is RP-771"},
)
LAST_QUESTION: Final = "Good. And if I am on the train then, how long does the parcel shop keep it?"
PREFETCHED: Final = ToolUse(
    "parcel_shop_terms", {"shop": "Keplerplatz"}, {"keeps_days": 10, "open": "Mon-Sat 07:00-20:00"}
)
"""What the application looked up by itself: it is in no chat message, so the window shows it as data."""

BOBS_TURNS: Final = (
    Turn(
        "Hi, my boots are too narrow. Can I still send them back?",
        "You can: you have 60 days. I have e-mailed you a label.",
        (ToolUse("create_label", {"user": "bob"}, {"label": "RL-0093", "valid_days": 14}),),
        {"current_topic": "return of boots"},
    ),
)
BOBS_QUESTION: Final = "Thanks. When do I get the money?"
OTHER_ALICES_QUESTION: Final = "I have lost my card in the library. What now?"

VISITORS: Final = ("chen", "dora", "emeka", "farah", "goran", "hana", "ivo", "june")
SMALL_TALK: Final = (
    ("Do you have the Wren 30 rucksack in green?", "Yes, nine of them. It is 129 euros."),
    ("What does it weigh?", "940 grams with the lid, 860 without."),
    ("Does a laptop fit?", "Up to 15 inches, in the sleeve at the back."),
    ("And is it waterproof?", "The fabric is; the seams are not. A rain cover is in the bottom pocket."),
    ("How long is the warranty?", "Three years, on zips and straps too."),
    ("Can I pick it up in the shop?", "Yes, from noon tomorrow. I have put one aside for you."),
)
"""What each visitor says, and what is replied."""
