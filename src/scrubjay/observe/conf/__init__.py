"""Configuration of a deployment's Valkey or Redis: which files, and what stands in them. Nothing here does I/O.

A `Plan` says what is wanted, `Secrets` holds the passwords, and `generate` returns the files. Each directive stands in
its file with the reason for it, because whoever runs the server will change some of them.
"""

from __future__ import annotations

from scrubjay.observe.conf.files import File, generate, generated_names
from scrubjay.observe.conf.plan import Plan, Tls
from scrubjay.observe.conf.secret import MIN_PASSWORD, Secrets

__all__ = ["MIN_PASSWORD", "File", "Plan", "Secrets", "Tls", "generate", "generated_names"]
