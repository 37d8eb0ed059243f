"""Who may do what: the ACL files of servers and of Sentinels.

The application may do what it does and no more. A script runs under the rights of whoever calls it, so what the scripts
call is on its list, and a script cannot reach farther than its caller. `tests/cli/test_conf.py` compares the list with
the commands that the library and its scripts contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scrubjay.core.notices import FOREIGN_CHANNEL
from scrubjay.observe.conf.plan import ADMIN, MONITOR, REPLICATION, SENTINEL, Plan
from scrubjay.observe.conf.secret import Secrets, digest

CONNECTION: Final = ("hello", "ping", "role", "info", "client|setname", "client|tracking")
SCRIPTING: Final = ("script|load", "evalsha", "eval")
DATA: Final = (
    *("get", "mget", "set", "exists", "type", "unlink", "pexpire", "persist", "scan", "multi", "exec"),
    *("hget", "hmget", "hgetall", "hset", "hdel", "hlen"),
    *("lindex", "llen", "lrange", "lset", "ltrim", "lpush", "lpop", "rpush"),
    *("zadd", "zrevrange", "zremrangebyscore"),
)
CHANNELS: Final = ("publish", "subscribe")
CLUSTER: Final = ("cluster|slots", "cluster|info", "cluster|nodes", "asking")
APP: Final = (*CONNECTION, *SCRIPTING, *DATA, *CHANNELS)

JOURNAL: Final = (
    *("config|get", "time", "wait", "hexists", "hincrby", "hsetnx", "zrangebyscore", "zrem"),
    *("xack", "xadd", "xautoclaim", "xdel", "xgroup|create", "xrange", "xreadgroup"),
    "pubsub|numsub",
)
"""What a journal takes besides: whether it syncs what it answers is asked of its configuration."""

# What `scrubjay doctor` asks, except for names of keys: those it lists as the application.
WATCHING: Final = (
    *("hello", "ping", "role", "info", "time", "dbsize", "client|setname", "client|list", "config|get"),
    *("slowlog|get", "slowlog|len", "latency|latest", "latency|history", "latency|histogram", "latency|doctor"),
    *("memory|usage", "memory|stats", "memory|doctor", "pttl", "acl|whoami", "acl|dryrun"),
)
WATCHING_CLUSTER: Final = ("cluster|info", "cluster|nodes", "cluster|slots", "cluster|shards", "cluster|myid")
REPLICATING: Final = ("ping", "psync", "replconf")
# As Sentinel's manual has it; `replicaof` is the newer name of `slaveof`.
GUARDING: Final = (
    *("ping", "info", "role", "publish", "subscribe", "multi", "exec", "slaveof", "replicaof"),
    *("config|rewrite", "client|setname", "client|kill", "script|kill"),
)
HELLO_CHANNEL: Final = "__sentinel__:hello"

ASKING_SENTINELS: Final = ("sentinel|get-master-addr-by-name", "sentinel|master")
AMONG_SENTINELS: Final = ("ping", "publish", "client|setname", "sentinel|is-master-down-by-addr")
WATCHING_SENTINELS: Final = (
    *("hello", "ping", "role", "info", "client|setname", "sentinel|masters", "sentinel|master"),
    *("sentinel|replicas", "sentinel|sentinels", "sentinel|ckquorum", "sentinel|get-master-addr-by-name"),
)


def app_commands(plan: Plan) -> tuple[str, ...]:
    """Return what the application may do on a server."""
    more = JOURNAL if plan.role == "journal" else ()
    return (*APP, *more, *(CLUSTER if plan.topology == "cluster" else ()))


def server_users(plan: Plan, secrets: Secrets) -> str:
    """Return the ACL file of the servers that hold data."""
    cluster = plan.topology == "cluster"
    lines = [
        _NOBODY,
        _user(ADMIN, secrets.admin, ("~*", "&*"), None),
        _user(plan.user, secrets.app, _own(plan.prefix), app_commands(plan)),
        _user(MONITOR, secrets.monitor, (f"%R~{plan.prefix}:*",), (*WATCHING, *(WATCHING_CLUSTER if cluster else ()))),
    ]
    if plan.topology != "single":
        lines.append(_user(REPLICATION, secrets.replication, (), REPLICATING))
    if plan.topology == "sentinel":
        # `SENTINEL FAILOVER … COORDINATED` of Valkey 9.1.
        coordinated = ("failover",) if plan.flavour == "valkey" else ()
        lines.append(_user(SENTINEL, secrets.sentinel, (f"&{HELLO_CHANNEL}",), (*GUARDING, *coordinated)))
    return "".join(f"{line}\n" for line in lines)


def sentinel_users(plan: Plan, secrets: Secrets) -> str:
    """Return the ACL file of the Sentinels."""
    among = ("sentinel|is-primary-down-by-addr",) if plan.flavour == "valkey" else ()
    lines = [
        _NOBODY,
        _user(ADMIN, secrets.admin, ("~*", "&*"), None),
        _user(plan.user, secrets.app, (), ASKING_SENTINELS),
        _user(MONITOR, secrets.monitor, (), WATCHING_SENTINELS),
        _user(SENTINEL, secrets.sentinel, (f"&{HELLO_CHANNEL}",), (*AMONG_SENTINELS, *among)),
    ]
    return "".join(f"{line}\n" for line in lines)


def users(plan: Plan) -> list[str]:
    """Return the users of the servers that hold data, without the one that is off."""
    names = [ADMIN, plan.user, MONITOR]
    names += [REPLICATION] if plan.topology != "single" else []
    return names + ([SENTINEL] if plan.topology == "sentinel" else [])


_NOBODY: Final = "user default off resetpass resetkeys resetchannels -@all"


def _own(prefix: str) -> tuple[str, ...]:
    # No prefix holds a character that means something in a pattern.
    return f"~{prefix}:*", f"&{prefix}:*", f"&{FOREIGN_CHANNEL}"


def _user(name: str, password: str, patterns: Sequence[str], commands: Sequence[str] | None) -> str:
    """Return the line of a user; without a list of commands, of one who may do everything."""
    rights = ("+@all",) if commands is None else ("-@all", *(f"+{command}" for command in commands))
    return " ".join(["user", name, "on", f"#{digest(password)}", "resetkeys", "resetchannels", *patterns, *rights])
