"""Parts of a message's content as content blocks of Anthropic. Pure."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any, Final

from scrubjay.assembly.formats.marks import Block
from scrubjay.assembly.formats.openai import plain

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]*;base64,", re.IGNORECASE)
_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_PDF_BASE64: Final = "JVBER"  # "%PDF" and what follows it
_NOTE_CHARS: Final = 200


def text_blocks(content: object) -> list[Block]:
    """Return the text of a content as blocks; what is not text becomes a note, what is empty is left out."""
    return [block for block in blocks_of(content, pictures=False) if block["type"] == "text"]


def blocks_of(content: object, *, pictures: bool = True) -> list[Block]:
    """Return a content as blocks.

    Text that is empty or only whitespace is left out: Anthropic refuses it. Images (PNG, JPEG, GIF, WebP; as data or by
    an `https` URL) and files (PDF and text) become blocks of theirs. What cannot be shown becomes a text that says so.

    Args:
        content: A text, a list of parts or None.
        pictures: Whether images and files may stand here; an assistant and a system prompt have only text.
    """
    if isinstance(content, str):
        return [_text(content)] if content.strip() else []
    if not isinstance(content, (list, tuple)):
        return []
    return [block for part in content if isinstance(part, Mapping) for block in _part(part, pictures)]


def _part(part: Mapping[str, Any], pictures: bool) -> list[Block]:
    kind = part.get("type")
    for field in ("text", "refusal"):
        if isinstance(part.get(field), str):
            return [_text(part[field])] if part[field].strip() else []
    if kind in ("image_url", "input_image", "image"):
        return [_image(part, pictures)]
    if kind in ("file", "input_file", "document"):
        return [_file(part, pictures)]
    return [_note(str(kind).removeprefix("input_"))]


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _note(what: str, why: str = "cannot be shown here") -> Block:
    return _text(f"[{what[:_NOTE_CHARS]}: {why}]")


def _image(part: Mapping[str, Any], pictures: bool) -> Block:
    if pictures and isinstance(part.get("source"), Mapping):
        return {"type": "image", "source": plain(part["source"])}
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not pictures or not isinstance(url, str):
        return _note("image")
    if url[:8].lower() == "https://":
        return {"type": "image", "source": {"type": "url", "url": url}}
    found = _DATA_URL.match(url)
    if found is None:
        return _note("image", "only https URLs and base64 data can be shown")
    media_type = (found[1] or "").lower().replace("image/jpg", "image/jpeg")
    if media_type not in _IMAGE_TYPES:
        return _note("image", f"the type {media_type or 'of its data'} cannot be shown"[:_NOTE_CHARS])
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": url[found.end() :]}}


def _file(part: Mapping[str, Any], pictures: bool) -> Block:
    file = part.get("file") if isinstance(part.get("file"), Mapping) else part
    assert isinstance(file, Mapping)
    name = file.get("filename")
    title = f"file {name}" if isinstance(name, str) and name else "file"
    if not pictures:
        return _note(title)
    source = file.get("source")
    if not isinstance(source, Mapping):
        source = _file_source(file)
    if source is None:
        return _note(title)
    block: Block = {"type": "document", "source": plain(source)}
    if title != "file":
        block["title"] = name
    return block


def _file_source(file: Mapping[str, Any]) -> dict[str, Any] | None:
    url = file.get("file_url")
    if isinstance(url, str) and url[:8].lower() == "https://":
        return {"type": "url", "url": url}
    data = file.get("file_data")
    if not isinstance(data, str):
        return None  # known by its id: that is of the other provider
    found = _DATA_URL.match(data)
    media_type = (found[1] or "").lower() if found else ""
    data = data[found.end() :] if found else data
    if media_type == "application/pdf" or (not media_type and data.startswith(_PDF_BASE64)):
        return {"type": "base64", "media_type": "application/pdf", "data": data}
    if media_type.startswith("text/"):
        try:
            text = b64decode(data, validate=True).decode()
        except (Base64Error, UnicodeDecodeError):
            return None
        return {"type": "text", "media_type": "text/plain", "data": text} if text.strip() else None
    return None
