"""The compose file: the same configuration files, run by containers on the hosts' own network."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scrubjay.observe.conf.plan import Node, Plan

IMAGES: Final = {"valkey": "valkey/valkey:9", "redis": "redis:8"}
APP_FILE, OPERATOR_FILE = "secrets.env", "operator.env"
HIDDEN: Final = (APP_FILE, OPERATOR_FILE)
IMAGE_USER: Final = "999:999"
"""Whom the images would run as."""
_HEADER: Final = """\
# Written by `scrubjay conf`. Its form is checked by tests; it was not run.
#
# The containers use the host's network and see this directory under the path that the files name. They run as whoever
# may read the files, without rights, and their own file systems cannot be written.
"""


def compose(plan: Plan, directory: str, owner: str) -> str:
    """Return the compose file.

    Args:
        plan: What is wanted.
        directory: The path of the files on the host.
        owner: The user who may read them, as `uid:gid`.
    """
    inside = "/conf" if plan.directory == "." else plan.directory
    services = {node.name: _service(plan, node, directory, inside, owner) for node in (*plan.nodes, *plan.sentinels)}
    return _HEADER + "\n" + emit({"name": f"{plan.flavour}-{plan.topology}", "services": services})


def _service(plan: Plan, node: Node, directory: str, inside: str, owner: str) -> dict[str, Any]:
    sentinel = node in plan.sentinels
    source = "." if plan.directory == "." else directory
    # What the servers have no use for is not to be seen by them.
    hidden = ({**_mount("/dev/null", f"{inside.rstrip('/')}/{name}"), "read_only": True} for name in HIDDEN)
    mounts = [_mount(source, inside), *hidden]
    if plan.tls is not None:
        certificates = plan.tls.directory
        within = certificates if certificates.startswith("/") else f"{inside}/{certificates}"
        if not f"{within}/".startswith(f"{inside}/"):
            mounts.append({**_mount(plan.tls.client_directory, within), "read_only": True})
    service: dict[str, Any] = {
        "image": IMAGES[plan.flavour],
        # Not the image's own start, which would change the owner of the files where it runs as root.
        "entrypoint": [f"{plan.flavour}-server"],
        "command": [f"{inside.rstrip('/')}/{node.name}.conf", *(["--sentinel"] if sentinel else [])],
        "working_dir": inside,
        "user": owner,
        "network_mode": "host",
        "volumes": mounts,
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"nofile": {"soft": 65_536, "hard": 65_536}},
        "healthcheck": {
            # Without a password it is refused, and that is an answer, too.
            "test": ["CMD-SHELL", f"{' '.join(_client(plan, node, inside))} ping 2>&1 | grep -qE 'PONG|NOAUTH'"],
            "interval": "10s",
            "timeout": "3s",
            "retries": 3,
        },
    }
    if len(plan.hosts) > 1:
        # One file for all hosts: on each, what belongs there is started by its profile.
        service["profiles"] = [profile(node.host)]
    return service


def profile(host: str) -> str:
    """Return the name under which what runs on a host is started."""
    return "host-" + host.replace(":", "-")


def _mount(source: str, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": target}


def _client(plan: Plan, node: Node, inside: str) -> list[str]:
    words = [f"{plan.flavour}-cli", "-h", node.host, "-p", str(node.port)]
    if plan.tls is None:
        return words
    certificates = plan.tls.directory if plan.tls.directory.startswith("/") else f"{inside}/{plan.tls.directory}"
    return [*words, "--tls", *(f"--{option} {shlex.quote(f'{certificates}/{file}')}" for option, file in _FILES)]


_PLAIN: Final = re.compile(r"[a-z][a-z0-9_.-]*")
_FILES: Final = (("cacert", "ca.crt"), ("cert", "server.crt"), ("key", "server.key"))


def emit(value: Mapping[str, Any], indent: int = 0) -> str:
    """Return a mapping as YAML: in blocks, each text in double quotes, so that none can be taken for anything else."""
    return "".join(_entry(_key(key), item, indent) for key, item in value.items())


def _entry(name: str, value: Any, indent: int) -> str:
    lead = f"{' ' * indent}{name}:"
    if isinstance(value, Mapping):
        return f"{lead}\n{emit(value, indent + 2)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{lead}\n{''.join(_item(item, indent + 2) for item in value)}"
    return f"{lead} {_scalar(value)}\n"


def _item(value: Any, indent: int) -> str:
    if isinstance(value, Mapping):
        # The first line of the block takes the dash.
        block = emit(value, indent + 2)
        return f"{' ' * indent}- {block[indent + 2 :]}"
    return f"{' ' * indent}- {_scalar(value)}\n"


def _key(key: str) -> str:
    return key if _PLAIN.fullmatch(key) else _scalar(key)


def _scalar(value: str | int | bool) -> str:
    if isinstance(value, str):
        # Compose puts variables of the environment where a `$` stands.
        return json.dumps(value.replace("$", "$$"))
    return json.dumps(value)
