"""NEXT.md: what to do with the files, what each choice is for, and what was not tried."""

from __future__ import annotations

import shlex

from scrubjay.core.keys import DEFAULT_PREFIX
from scrubjay.observe.conf.compose import APP_FILE, IMAGE_USER, IMAGES, OPERATOR_FILE, profile
from scrubjay.observe.conf.directives import SENTINEL_USERS_FILE, USERS_FILE
from scrubjay.observe.conf.plan import ADMIN, MONITOR, REPLICATION, SENTINEL, Node, Plan, is_address

_TITLES = {
    "single": "one server",
    "sentinel": "a primary with replicas, watched by Sentinels",
    "cluster": "a cluster",
}
_PASSWORD_VARIABLE = {"valkey": "VALKEYCLI_AUTH", "redis": "REDISCLI_AUTH"}


def notes(plan: Plan, directory: str) -> str:
    """Return the text.

    Args:
        plan: What is wanted.
        directory: Where the files are written.
    """
    sections = [
        f"# {plan.flavour.title()}: {_TITLES[plan.topology]}\n\nWritten by `scrubjay conf {plan.topology}`.\n",
        _files(plan),
        _certificates(plan),
        _start(plan, directory),
        _application(plan),
        _users(plan),
        _choices(plan),
        _not_run(plan),
    ]
    return "\n".join(section for section in sections if section)


def certificate_commands(plan: Plan) -> str:
    """Return the commands that make an authority and certificates; nothing without TLS."""
    if plan.tls is None:
        return ""
    names = dict.fromkeys(["DNS:localhost", "IP:127.0.0.1", *(_subject(host) for host in plan.hosts)])
    kinds = {"server": "serverAuth,clientAuth"}
    if plan.tls.clients != "no":
        kinds["client"] = "clientAuth"
    directory = shlex.quote(plan.tls.client_directory)
    lines = [
        f"mkdir -p -m 700 {directory} && cd {directory} && umask 077",
        "openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days 3650 -subj '/CN=scrubjay cache authority' \\",
        "  -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt",
    ]
    for kind, usage in kinds.items():
        lines += [
            f"openssl req -newkey rsa:3072 -nodes -sha256 -subj '/CN=scrubjay cache {kind}' \\",
            f"  -keyout {kind}.key -out {kind}.csr",
            "printf '%s\\n' basicConstraints=CA:FALSE authorityKeyIdentifier=keyid \\",
            f"  extendedKeyUsage={usage} subjectAltName={','.join(names)} > {kind}.ext",
            f"openssl x509 -req -in {kind}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 825 \\",
            f"  -extfile {kind}.ext -out {kind}.crt",
        ]
    return "\n".join(lines)


def _subject(host: str) -> str:
    return f"IP:{host}" if is_address(host) else f"DNS:{host}"


def _files(plan: Plan) -> str:
    rows = [(f"{node.name}.conf", f"a server at {node.address}") for node in plan.nodes]
    rows += [(f"{node.name}.conf", f"a Sentinel at {node.address}") for node in plan.sentinels]
    rows.append((USERS_FILE, "the servers' users; passwords as SHA-256 only"))
    if plan.sentinels:
        rows.append((SENTINEL_USERS_FILE, "the Sentinels' users"))
    rows += [
        ("secrets.env", "for the application: `SCRUBJAY_CACHE=`, with its password"),
        ("operator.env", f"for you: the password of `{ADMIN}`, and the URL of `{MONITOR}`"),
        ("compose.yaml", "containers over the same files"),
    ]
    hint = "All but `compose.yaml` and this file are readable by their owner alone: the server has to run as that user"
    if plan.topology != "single":
        hint += ". Their `.conf` files hold the password with which servers log in at each other"
    table = "".join(f"| `{name}` | {what} |\n" for name, what in rows)
    return f"## Files\n\n| file | what it is |\n|---|---|\n{table}\n{hint}.\n"


def _certificates(plan: Plan) -> str:
    if plan.tls is None:
        return ""
    return (
        "## Certificates\n\n"
        "None were made. The servers do not start without `ca.crt`, `server.crt` and `server.key` in "
        f"`{plan.tls.directory}`. If you have no authority of your own:\n\n"
        f"```sh\n{certificate_commands(plan)}\n```\n\n"
        "Take `ca.key` off the machine afterwards. Clients check the server's name against the certificate"
        + {"no": ".", "optional": "; one that they show themselves is checked.", "yes": ", and must show one."}[
            plan.tls.clients
        ]
        + "\n"
    )


def _start(plan: Plan, directory: str) -> str:
    many = len(plan.hosts) > 1
    steps = []
    if many:
        steps.append(
            "Copy the directory to every host, under the same path, with its modes: each host needs the files of "
            "its own servers and the ACL files; nobody needs `operator.env` there."
        )
    place = plan.directory if plan.directory != "." else "the directory of the files"
    if plan.directory == ".":
        steps.append("Start each server in the directory of its files: their paths are relative to it.")
    starting = _starting(plan)
    start = "Start it; it" if len(starting) == 1 else "Start them; each"
    foreground = f"{start} stays in the foreground, so give it a service or a terminal of its own:"
    steps.append(f"{foreground}\n\n```sh\n" + "\n".join(starting) + "\n```")
    by_compose = (
        f"Or by containers: on each host, `docker compose --profile {profile(plan.hosts[0])} up -d`, with that "
        "host's name."
        if many
        else "Or by containers: `docker compose up -d`."
    )
    by_compose += (
        f" They run as who wrote the files; where that was root, as {IMAGE_USER}: then `chown -R {IMAGE_USER} "
        f"{shlex.quote(directory)}` first."
    )
    steps.append(by_compose)
    if plan.topology == "cluster":
        steps.append("Make the cluster, once all run:\n\n```sh\n" + _joining(plan, directory) + "\n```")
    steps.append(
        "Look whether all is well, with the application's `SCRUBJAY_STORE` set, too:\n\n```sh\n"
        f"(set -a; . {_file(directory, APP_FILE)}; . {_file(directory, OPERATOR_FILE)}; scrubjay doctor)\n```"
    )
    numbered = "\n".join(f"{number}. {_indented(step)}" for number, step in enumerate(steps, 1))
    return f"## Start\n\nThe files stand in `{place}`.\n\n{numbered}\n"


def _starting(plan: Plan) -> list[str]:
    def line(node: Node, mode: str) -> str:
        where = f"   # on {node.host}" if len(plan.hosts) > 1 else ""
        return f"{plan.flavour}-server {shlex.quote(plan.path(f'{node.name}.conf'))}{mode}{where}"

    return [line(node, "") for node in plan.nodes] + [line(node, " --sentinel") for node in plan.sentinels]


def _file(directory: str, name: str) -> str:
    return shlex.quote(f"{directory.rstrip('/')}/{name}")


def _joining(plan: Plan, directory: str) -> str:
    variable = _PASSWORD_VARIABLE[plan.flavour]
    tls = ""
    if plan.tls is not None:
        base = plan.tls.client_directory
        tls = "".join(
            f" --{option} {shlex.quote(f'{base}/{file}')}"
            for option, file in (("cacert", "ca.crt"), ("cert", "server.crt"), ("key", "server.key"))
        )
        tls = f" --tls{tls}"
    return (
        f". {_file(directory, OPERATOR_FILE)}\n"
        f'{variable}="$SCRUBJAY_ADMIN_PASSWORD" {plan.flavour}-cli --user "$SCRUBJAY_ADMIN_USER"{tls} \\\n'
        f"  --cluster create {' '.join(node.address for node in plan.nodes)} --cluster-replicas 1"
    )


def _indented(text: str) -> str:
    return text.replace("\n", "\n   ").replace("\n   \n", "\n\n")


def _application(plan: Plan) -> str:
    text = (
        "## The application\n\nGive it the line of `secrets.env` as its environment, and nothing else of this "
        f"directory. Its keys begin with `{plan.prefix}:`"
    )
    text += (
        "; that is the library's own default.\n"
        if plan.prefix == DEFAULT_PREFIX
        else f": set `SCRUBJAY_PREFIX={plan.prefix}`.\n"
    )
    match plan.topology:
        case "sentinel":
            text += (
                "\nThe URL names the Sentinels, and a majority of them has to answer: they say which server is the "
                f"primary. `{plan.user}` has the same password there.\n"
            )
        case "cluster":
            text += "\nThe URL names all nodes; the application finds the others by way of any of them.\n"
    if plan.topology == "sentinel" or (plan.tls is not None and plan.tls.clients == "yes"):
        text += (
            "\nThe value stands in quotes, for a shell. `docker run --env-file` takes them for a part of it: leave "
            "them out there.\n"
        )
    return (
        text
        + "\nFor a new password, write the files anew (`--force`), restart the servers (or `ACL LOAD`, where only the "
        "ACL file has changed), and then the application. Give one of your own in the environment "
        "(`SCRUBJAY_CONF_PASSWORD`) or by `--password-file`: then it stays.\n"
    )


def _users(plan: Plan) -> str:
    rows = [
        ("default", "off: a connection that has not logged in can do nothing"),
        (
            plan.user,
            f"the application: keys `{plan.prefix}:*`, channels `{plan.prefix}:*` and `context_invalidation`, and "
            "the commands that the library uses. `SCAN`, which it clears with, and tracking show the names of "
            "others' keys, not what they hold: no access list can prevent that. Give what must not be named a "
            "server of its own",
        ),
        (ADMIN, "everything; for you"),
        (
            MONITOR,
            "looks: `INFO`, `SLOWLOG GET`, `LATENCY`, `MEMORY`, `CONFIG GET`; reads no values and changes nothing",
        ),
    ]
    if plan.topology != "single":
        rows[-1] = (MONITOR, rows[-1][1] + ". `CONFIG GET` shows it the password of `replication`")
        rows.append((REPLICATION, "what a replica needs at its primary: it gets a copy of everything, so guard it"))
    if plan.topology == "sentinel":
        rows.append((SENTINEL, "what Sentinels need at the servers and at each other"))
        rows[1] = (plan.user, rows[1][1] + ". At the Sentinels: to ask who the primary is, and nothing else")
    table = "".join(f"| `{name}` | {what} |\n" for name, what in rows)
    return f"## Users\n\n| user | may |\n|---|---|\n{table}"


def _choices(plan: Plan) -> str:
    rows = []
    if plan.role == "journal":
        rows += [
            ("role `journal`", "what is held must not be lost: a log on the disk, and nothing is evicted"),
            (f"`appendfsync {plan.fsync}`", "how much of what was acknowledged can be lost with the machine's power"),
        ]
    else:
        rows += [
            ("role `cache`", "nothing is kept on a disk: every entry is a copy of what the store holds"),
            (
                f"`maxmemory-policy {plan.policy}`",
                "anything may go: eviction at any moment is safe"
                if plan.policy == "allkeys-lru"
                else "only what has a time to live may go; for a server that also holds keys of others that must stay. "
                "Entries without one (users' memory, agents) are never evicted",
            ),
        ]
    rows.append((f"`maxmemory {plan.maxmemory.lower()}`", "leave the machine a third more: buffers, fragmentation"))
    if plan.topology == "sentinel":
        rows.append(
            (
                "`min-replicas-to-write 1`",
                "a primary without replicas refuses writes: reads go on, writes are told later. With every replica "
                "down for maintenance, set it to 0",
            )
        )
        if plan.role == "cache":
            rows.append(
                (
                    "no persistence under replication",
                    "a primary that is restarted at once comes back empty, and its replicas become empty with it: "
                    "for a cache that is slow for a while, for a journal it would be a loss",
                )
            )
    if plan.topology == "cluster":
        rows += [
            ("`cluster-node-timeout 5000`", "how long a node may be silent; shorter takes busy nodes for dead ones"),
            ("`cluster-allow-reads-when-down no`", "a node that may be behind answers nothing"),
            (
                "no `min-replicas-to-write`",
                "each primary has one replica only: while that is away, its part would take no writes. What a "
                "primary that is cut off was told in the first 5 seconds is lost with it, and the library tells it "
                "again to the one that takes over",
            ),
        ]
    table = "".join(f"| {name} | {why} |\n" for name, why in rows)
    head = "## Choices\n\nEach directive has its reason beside it in its file.\n\n"
    return f"{head}| choice | what for |\n|---|---|\n{table}"


def _not_run(plan: Plan) -> str:
    text = (
        "## What was not run\n\nThe tests of Scrubjay start real servers from files like these, attack them, "
        "run the library on them, and kill primaries. `compose.yaml` was not run: only its form is checked; its image "
        f"is `{IMAGES[plan.flavour]}`. The files were not run on your hosts: look at the servers' first lines of log."
    )
    if plan.tls is not None:
        text += " With TLS, they were run on Redis 7 only: the servers of the other tests are built without it."
    if plan.topology == "cluster":
        text += " Of the moving of slots, only that the application is sent on to where one goes was tried."
    if plan.named_hosts and plan.topology != "single":
        text += " Hosts given by name were not tried with several machines."
    return text + "\n"
