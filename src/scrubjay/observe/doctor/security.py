"""Checks of who can reach a server, and of what they may do."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from scrubjay.core.facts import ServerFacts
from scrubjay.core.notices import FOREIGN_CHANNEL
from scrubjay.observe.doctor.findings import (
    Elsewhere,
    Facts,
    Found,
    Severity,
    Unasked,
    asked,
    count,
    parameter,
    rule,
    set_parameter,
)

_CONF = "`scrubjay conf` writes a configuration with users of least rights, `default` off and a password for each"
_ADMIN = (
    "first, or nobody is left who may change anything: ACL SETUSER admin on '>ANOTHER-LONG-PASSWORD' '~*' '&*' +@all; "
    "and see that replicas, Sentinels and monitoring log in as somebody (ACL SAVE or CONFIG REWRITE keeps it)"
)


@rule("security.no_password", "node", "nobody is answered who has not logged in")
def no_password(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find a server that anybody may use."""
    if node.open_door is None:
        raise Unasked(node.refused.get("open", "no connection without credentials was tried"))
    if not node.open_door:
        return
    open_to, evidence = _reach(node)
    far = open_to is None or open_to
    yield Found(
        Severity.CRITICAL if far else Severity.ADVICE,
        "who does not log in is answered"
        + (
            ", and the server listens beyond its own machine: anybody who reaches it reads and deletes everything"
            if far
            else ": any process of this machine reads and deletes everything"
        ),
        (
            _ADMIN,
            f"ACL SETUSER scrubjay on '>A-LONG-PASSWORD' resetkeys '~{facts.prefix}:*' resetchannels "
            f"'&{facts.prefix}:*' '&{FOREIGN_CHANNEL}' -@all … (the list of commands is in users.acl of `scrubjay conf "
            "single`), give the application its URL, and then ACL SETUSER default off",
            _CONF,
        ),
        evidence,
    )


@rule("security.exposed_port", "node", "the port is not open to everybody in the clear")
def exposed_port(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a port on all interfaces without TLS: nobody is kept out of it, or what goes over it can be read."""
    bound, protected = parameter(node, "bind").split(), parameter(node, "protected-mode")
    plain = count(node, "port")
    everywhere = not bound or any(each.lstrip("-") in {"*", "0.0.0.0", "::", "::*"} for each in bound)  # noqa: S104
    if not plain or not everywhere:
        return
    evidence = {"bind": " ".join(bound), "protected-mode": protected, "port": plain, "tls": node.tls}
    bind = "in the configuration file: bind 127.0.0.1 -::1 and the address of the private network"
    tls = "`scrubjay conf … --tls` writes a configuration that listens with TLS only"
    if node.open_door is False:
        # Then protected-mode, whatever it is, turns nobody away.
        yield Found(
            Severity.WARNING,
            f"port {plain} listens on every interface, without TLS: who does not log in is turned away, but passwords "
            "and contents go over the network in the clear",
            (tls, bind),
            evidence,
        )
    elif protected == "no":
        yield Found(
            Severity.CRITICAL,
            f"port {plain} listens on every interface, without TLS and without protected-mode: contents go over the "
            "network in the clear, and a firewall is all there is",
            (
                bind,
                # It turns everybody away who comes from elsewhere, as long as nobody has to log in: us, too.
                *(
                    set_parameter("protected-mode", "yes")
                    if node.local
                    else ("once clients log in (security.no_password), and not before: protected-mode yes",)
                ),
                tls,
            ),
            evidence,
        )


@rule("security.default_user", "node", "the user without a name can destroy nothing")
def default_user(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find what anybody may do to everybody's data."""
    if node.open_door is None:
        raise Unasked(node.refused.get("open", "no connection without credentials was tried"))
    if not node.open_door:
        return
    if node.open_commands is None:
        raise Unasked("who has not logged in may not ask what it may do (ACL DRYRUN)")
    if node.open_commands:
        yield Found(
            Severity.WARNING,
            f"without logging in, {', '.join(node.open_commands)} are allowed: one wrong command takes everything",
            (
                _ADMIN,
                "ACL SETUSER default -@dangerous -@admin +info +role, or better: ACL SETUSER default off",
                _CONF,
            ),
            {"allowed": list(node.open_commands)},
        )


@rule("security.app_rights", "node", "the application's user has the rights that it needs, and no more")
def app_rights(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find an application that could do what it never does."""
    if node.open_door and node.app_user == "default":
        # Anybody may: security.default_user.
        raise Elsewhere
    if node.app_commands is None:
        asked(node, "acl|dryrun")
        raise Unasked("the server did not say what the application's user may do (ACL DRYRUN)")
    if node.app_commands:
        user = node.app_user
        yield Found(
            Severity.ADVICE,
            f"the application's user {user!r:.100} may run {', '.join(node.app_commands)}, which the library never "
            "does: who gets hold of its password can empty the server or take it over",
            ((_ADMIN,) if user == "default" else ()) + (f"ACL SETUSER {user} -@dangerous -@admin +info +role", _CONF),
            {"user": user, "allowed": list(node.app_commands)},
        )


def _reach(node: ServerFacts) -> tuple[bool | None, dict[str, object]]:
    """Return whether a server can be reached from other machines; None if it does not say."""
    if not node.local:
        return True, {"reached_over": "the network"}
    if "bind" not in node.config or "protected-mode" not in node.config:
        return None, {"bind": None}
    bound = node.config["bind"].split()
    evidence: dict[str, object] = {"bind": node.config["bind"], "protected-mode": node.config["protected-mode"]}
    ports = [node.config.get("port", "0"), node.config.get("tls-port", "0")]
    if all(port == "0" for port in ports):
        return False, {**evidence, "port": 0}
    if node.config["protected-mode"] == "yes":
        return False, evidence
    return not bound or not all(_loopback(each.lstrip("-")) for each in bound), evidence


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
