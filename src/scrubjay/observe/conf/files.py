"""All files of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

from scrubjay.observe.conf.acl import sentinel_users, server_users
from scrubjay.observe.conf.compose import APP_FILE, OPERATOR_FILE, compose
from scrubjay.observe.conf.directives import SENTINEL_USERS_FILE, USERS_FILE, sentinel, server
from scrubjay.observe.conf.notes import notes
from scrubjay.observe.conf.plan import ADMIN, MONITOR, Node, Plan, check_path
from scrubjay.observe.conf.secret import Secrets

COMPOSE_FILE: Final = "compose.yaml"
NOTES_FILE: Final = "NEXT.md"


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written.

    Attributes:
        name: What it is called.
        text: What stands in it; not in its `repr`, for there may be passwords in it.
        mode: Who may read it.
    """

    name: str
    text: str = field(repr=False)
    mode: int


def generated_names(plan: Plan) -> list[str]:
    """Return how the files of a plan are called, in the order of `generate`."""
    nodes = [f"{node.name}.conf" for node in (*plan.nodes, *plan.sentinels)]
    users = [USERS_FILE, *([SENTINEL_USERS_FILE] if plan.sentinels else [])]
    return [*nodes, *users, APP_FILE, OPERATOR_FILE, COMPOSE_FILE, NOTES_FILE]


def generate(plan: Plan, secrets: Secrets, directory: str, owner: str) -> list[File]:
    """Return the files of a plan.

    Args:
        plan: What is wanted.
        secrets: The passwords.
        directory: Where the files are written, an absolute path.
        owner: The user who may read them, as `uid:gid`; for the compose file.

    Raises:
        ConfigurationError: The directory's name is no text.
    """
    check_path(directory)
    texts = [server(plan, node, secrets) for node in plan.nodes]
    texts += [sentinel(plan, node, secrets) for node in plan.sentinels]
    texts += [server_users(plan, secrets), *([sentinel_users(plan, secrets)] if plan.sentinels else [])]
    texts += [
        _variable("SCRUBJAY_CACHE", cache_url(plan, plan.user, secrets.app)),
        _operator(plan, secrets),
        compose(plan, directory, owner),
        notes(plan, directory),
    ]
    public = {COMPOSE_FILE, NOTES_FILE}
    return [
        File(name, text, 0o644 if name in public else 0o600)
        for name, text in zip(generated_names(plan), texts, strict=True)
    ]


def cache_url(plan: Plan, user: str, password: str) -> str:
    """Return the URL of the cache, for a user."""
    nodes: Iterable[Node]
    match plan.topology:
        case "single":
            kind, nodes, path = "", plan.nodes, "/0"
        case "sentinel":
            kind, nodes, path = "+sentinel", plan.sentinels, f"/{plan.service}"
        case "cluster":
            kind, nodes, path = "+cluster", plan.nodes, ""
    scheme = {"valkey": "valkey", "redis": "redis"}[plan.flavour]
    if plan.tls is not None:
        scheme = {"valkey": "valkeys", "redis": "rediss"}[plan.flavour]
    hosts = ",".join(node.address for node in nodes)
    return f"{scheme}{kind}://{user}:{quote(password, safe='')}@{hosts}{path}{_options(plan, user, password)}"


def _options(plan: Plan, user: str, password: str) -> str:
    options: dict[str, str] = {}
    if plan.topology == "sentinel":
        # Users of one name, of the servers and of the Sentinels, have one password.
        options |= {"sentinel_username": user, "sentinel_password": password}
    if plan.tls is not None:
        certificates = plan.tls.client_directory.rstrip("/")
        options["ssl_ca_certs"] = f"{certificates}/ca.crt"
        if plan.tls.clients == "yes":
            options |= {"ssl_certfile": f"{certificates}/client.crt", "ssl_keyfile": f"{certificates}/client.key"}
    return "?" + urlencode(options, quote_via=quote, safe="") if options else ""


def _operator(plan: Plan, secrets: Secrets) -> str:
    return (
        "# For those who run the servers, not for the application.\n"
        f"{_variable('SCRUBJAY_ADMIN_USER', ADMIN)}"
        f"{_variable('SCRUBJAY_ADMIN_PASSWORD', secrets.admin)}"
        f"{_variable('SCRUBJAY_MONITOR_CACHE', cache_url(plan, MONITOR, secrets.monitor))}"
    )


def _variable(name: str, value: str) -> str:
    # Percent-encoded URLs and random words need no quotes, except for `&`.
    return f"{name}='{value}'\n" if "&" in value else f"{name}={value}\n"
