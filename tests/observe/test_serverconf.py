"""Configuration of servers: what must hold of every plan."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.keys import KeySpace
from scrubjay.core.notices import FOREIGN_CHANNEL
from scrubjay.core.scope import Scope
from scrubjay.observe.conf import File, Plan, Secrets, Tls, generate, generated_names
from scrubjay.observe.conf.compose import emit
from scrubjay.observe.conf.directives import quoted
from scrubjay.observe.conf.plan import LOCAL, RESERVED
from scrubjay.observe.conf.secret import digest
from scrubjay.valkey.url import parse_cache_url

NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,32}", fullmatch=True)
# What may stand in the name of a directory: anything but a zero byte.
FOLDERS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20)
HOSTS = st.sampled_from(
    [
        (LOCAL,), ("10.0.0.1",), ("cache.internal",), ("::1",),
        ("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("a", "b", "c", "d"),
        ("fd00::1", "fd00::2", "fd00::3"), tuple(f"cache-{n}.example.com" for n in range(6)),
    ]
)  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return a plan that can work."""
    topology = draw(st.sampled_from(["single", "sentinel", "cluster"]))
    hosts = draw(HOSTS)
    directory = draw(st.just(".") | FOLDERS.map(lambda name: f"/{name}"))
    tls = draw(
        st.none() | st.builds(Tls, FOLDERS.map("/".__add__), FOLDERS.map("/".__add__), st.sampled_from(["no", "yes"]))
    )
    return Plan(
        topology,
        directory,
        hosts=hosts[:1] if topology == "single" else hosts,
        maxmemory=draw(st.sampled_from(["64mb", "2GB", "3g", "16777216", "99999k"])),
        policy=draw(st.sampled_from(["allkeys-lru", "volatile-lru"])),
        role=draw(st.sampled_from(["cache", "journal"])),
        prefix=draw(NAMES),
        user=draw(NAMES.filter(lambda name: name.lower() not in RESERVED)),
        service=draw(NAMES),
        flavour=draw(st.sampled_from(["valkey", "redis"])),
        tls=tls,
        bind=draw(st.sampled_from([(), ("0.0.0.0",), ("10.0.0.9", "-::1")])),
    )


# They begin with what no name holds: a name that is a part of a password shows nothing of it.
PASSWORDS = st.text(st.characters(exclude_categories=("Cs",)).filter(str.isprintable), min_size=16, max_size=60).map(
    "§pass:".__add__
)


def made(plan: Plan, secrets: Secrets | None = None) -> dict[str, File]:
    """Return the files of a plan by name."""
    files = generate(plan, secrets or Secrets.new(), "/srv/cache", "1000:1000")
    assert [file.name for file in files] == generated_names(plan)
    return {file.name: file for file in files}


# --- readers of what was written


def words(line: str) -> list[str]:
    """Read a line of a configuration file as the servers do, where it is quoted as it is here."""
    found = []
    for quote, plain in re.findall(r'"((?:\\x[0-9a-f]{2}|[^"\\])*)"|(\S+)', line):
        raw = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), quote.encode("ascii"))
        found.append(plain or raw.decode())
    return found


def directives(text: str) -> dict[str, list[list[str]]]:
    """Return the directives of a file: the values of each, by name."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            assert line.isascii()
            name, *values = words(line)
            found.setdefault(name, []).append(values)
    return found


def users(text: str) -> dict[str, list[str]]:
    """Return the rules of an ACL file by user."""
    found = {}
    for line in text.splitlines():
        word, name, *rules = line.split(" ")
        assert word == "user"
        assert name not in found
        found[name] = rules
    return found


def read_yaml(text: str) -> Any:
    """Read the part of YAML that is written here: blocks, texts in double quotes, numbers, true and false."""
    lines = [
        (len(line) - len(line.lstrip()), line.strip())
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    value, rest = _block(lines)
    assert not rest
    return value


def _block(lines: list[tuple[int, str]]) -> tuple[Any, list[tuple[int, str]]]:
    indent = lines[0][0]
    listed = lines[0][1].startswith("- ")
    items: list[Any] = []
    entries: dict[str, Any] = {}
    while lines and lines[0][0] == indent:
        text = lines[0][1]
        assert text.startswith("- ") == listed
        if listed and not re.match(r'- ["\d]|- (true|false)$', text):
            value, lines = _block([(indent + 2, text[2:]), *lines[1:]])
            items.append(value)
        elif listed:
            items.append(json.loads(text[2:]))
            lines = lines[1:]
        else:
            key, scalar = re.fullmatch(r'("(?:[^"\\]|\\.)*"|[\w.-]+):(.*)', text).groups()  # type: ignore[union-attr]
            key = json.loads(key) if key.startswith('"') else key
            assert key not in entries
            lines = lines[1:]
            if scalar:
                entries[key] = json.loads(scalar)
            else:
                entries[key], lines = _block(lines)
    return (items if listed else entries), lines


# --- properties


@given(plan=plans(), password=PASSWORDS)
def test_passwords_stand_only_where_nobody_else_reads(plan: Plan, password: str) -> None:
    secrets = Secrets.new(password)
    files = made(plan, secrets)
    for file in files.values():
        assert file.mode in {0o600, 0o644}
        shown = [word for word in secrets.all() if word in file.text and len(word) > 20]
        if file.mode == 0o644 or file.name.endswith(".acl"):
            assert not shown
        assert secrets.admin not in file.text or file.name == "operator.env"
        assert not any(word in repr(file) for word in secrets.all())
    assert not any(word in repr(secrets) for word in secrets.all() if len(word) > 20)
    assert files["compose.yaml"].mode == files["NEXT.md"].mode == 0o644


@given(plan=plans())
def test_every_file_can_be_read(plan: Plan) -> None:
    secrets = Secrets.new()
    files = made(plan, secrets)
    for node in (*plan.nodes, *plan.sentinels):
        found = directives(files[f"{node.name}.conf"].text)
        assert found["dir"] == [[plan.directory]]
        users_file = "sentinel-users.acl" if node in plan.sentinels else "users.acl"
        assert found["aclfile"] == [[plan.path(users_file)]]
        assert found["port"] == [[str(0 if plan.tls else node.port)]]
        assert found.get("tls-port") == ([[str(node.port)]] if plan.tls else None)
        assert found["protected-mode"] == [["yes"]]
        if plan.tls:
            assert found["tls-key-file"] == [[plan.tls.directory.rstrip("/") + "/server.key"]]
        repeated = {name for name in found if len(found[name]) > 1}
        assert repeated <= {"client-output-buffer-limit", "sentinel"}
        if node in plan.nodes:
            journal = plan.role == "journal"
            assert found["maxmemory-policy"] == [["noeviction" if journal else plan.policy]]
            assert found["appendonly"] == [["yes" if journal else "no"]]
            assert ("min-replicas-to-write" in found) == (plan.topology == "sentinel")
            assert ("cluster-enabled" in found) == (plan.topology == "cluster")
        else:
            primary = plan.nodes[0]
            quorum = len(plan.sentinels) // 2 + 1
            assert ["monitor", plan.service, primary.host, str(primary.port), str(quorum)] in found["sentinel"]


@given(plan=plans())
def test_rights(plan: Plan) -> None:
    files = made(plan)
    for name in ("users.acl", "sentinel-users.acl"):
        if name not in files:
            assert not plan.sentinels
            continue
        found = users(files[name].text)
        assert found.pop("default") == ["off", "resetpass", "resetkeys", "resetchannels", "-@all"]
        for user, rules in found.items():
            assert rules[0] == "on"
            assert re.fullmatch(r"#[0-9a-f]{64}", rules[1])
            assert "nopass" not in rules
            assert ("+@all" in rules) == (user == "admin")
            assert ("-@all" in rules) == (user != "admin")
            assert not any(rule.startswith("+@") for rule in rules if user != "admin")
            dangerous = {
                "flushall",
                "flushdb",
                "keys",
                "config",
                "debug",
                "shutdown",
                "save",
                "module",
                "acl",
                "monitor",
            }
            assert not {f"+{command}" for command in dangerous} & set(rules)
    rules = users(files["users.acl"].text)[plan.user]
    assert [rule for rule in rules if rule[0] in "~&%"] == [
        f"~{plan.prefix}:*",
        f"&{plan.prefix}:*",
        f"&{FOREIGN_CHANNEL}",
    ]
    # The one `*` is ours: nothing in a prefix is a pattern.
    assert not re.search(r"[\\*?\[\]^]", plan.prefix)
    key = KeySpace(plan.prefix).chat(Scope("a", "b"), "s")
    assert key.key.startswith(f"{plan.prefix}:")
    assert key.lease.startswith(f"{plan.prefix}:")


@given(plan=plans(), password=PASSWORDS)
def test_urls(plan: Plan, password: str) -> None:
    files = made(plan, Secrets.new(password))
    variables = [line for line in files["secrets.env"].text.splitlines() if line]
    (line,) = variables
    name, _, url = line.partition("=")
    assert name == "SCRUBJAY_CACHE"
    url = url.strip("'")
    found = parse_cache_url(url)
    assert found.kind == ("server" if plan.topology == "single" else plan.topology)
    assert (found.username, found.password, found.database) == (plan.user, password, 0)
    assert f"#{digest(password)}" in users(files["users.acl"].text)[plan.user]
    if plan.topology == "single":
        assert (found.host, found.port) == (plan.hosts[0], plan.port)
    else:
        assert found.hosts == tuple((node.host, node.port) for node in plan.sentinels or plan.nodes)
    if plan.topology == "sentinel":
        assert (found.service, found.sentinel_username, found.sentinel_password) == (plan.service, plan.user, password)
        assert f"#{digest(password)}" in users(files["sentinel-users.acl"].text)[plan.user]
    else:
        assert found.sentinel_username is found.sentinel_password is None
    assert found.tls == (plan.tls is not None)
    assert found.ca_file == (plan.tls and plan.tls.client_directory.rstrip("/") + "/ca.crt")
    asked = plan.tls is not None and plan.tls.clients == "yes"
    assert (found.cert_file is not None, found.key_file is not None) == (asked, asked)
    assert not re.search(r"[\s$`\"\\;|<>]", url)


@given(plan=plans())
def test_the_compose_file(plan: Plan) -> None:
    """Structure as the Compose specification has it; there is no Docker here to ask."""
    found = read_yaml(made(plan)["compose.yaml"].text)
    assert set(found) == {"name", "services"}
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", found["name"])
    everyone = {node.name: node for node in (*plan.nodes, *plan.sentinels)}
    assert set(found["services"]) == set(everyone)
    for name, service in found["services"].items():
        assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)
        assert {
            "image": str, "entrypoint": list, "command": list, "working_dir": str, "user": str, "network_mode": str,
            "volumes": list, "restart": str, "stop_grace_period": str, "read_only": bool, "cap_drop": list,
            "security_opt": list, "ulimits": dict, "healthcheck": dict,
        } == {key: type(value) for key, value in service.items() if key != "profiles"}  # fmt: skip
        assert service["user"] == "1000:1000"
        assert service["restart"] in {"no", "always", "on-failure", "unless-stopped"}
        assert service["network_mode"] == "host"
        for mount in service["volumes"]:
            assert {"type", "source", "target"} <= set(mount) <= {"type", "source", "target", "read_only"}
            assert mount["type"] == "bind"
        hidden = [mount["target"].rpartition("/")[2] for mount in service["volumes"] if mount["source"] == "/dev/null"]
        assert sorted(hidden) == ["operator.env", "secrets.env"]
        assert set(service["healthcheck"]) == {"test", "interval", "timeout", "retries"}
        assert service["command"][0].endswith(f"/{name}.conf")
        assert service["command"][1:] == (["--sentinel"] if everyone[name] in plan.sentinels else [])
        # A dollar sign would be a variable.
        assert "$" not in re.sub(r"\$\$", "", json.dumps(service))
        profiles = service.get("profiles", [])
        assert bool(profiles) == (len(plan.hosts) > 1)
        assert all(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", profile) for profile in profiles)


@given(
    value=st.recursive(
        st.text() | st.integers(min_value=0) | st.booleans(),
        lambda below: (
            st.lists(below.filter(lambda item: not isinstance(item, list)), min_size=1)
            | st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.-]*", fullmatch=True), below, min_size=1)
        ),
        max_leaves=10,
    ).filter(lambda value: isinstance(value, dict))
)
def test_yaml_is_read_as_it_was_meant(value: dict[str, Any]) -> None:
    def undoubled(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: undoubled(below) for name, below in item.items()}
        if isinstance(item, list):
            return [undoubled(below) for below in item]
        return item.replace("$$", "$") if isinstance(item, str) else item

    assert undoubled(read_yaml(emit(value))) == undoubled(value)


@given(text=FOLDERS)
def test_quoting(text: str) -> None:
    line = f"dir {quoted(text)}"
    assert line.isascii()
    assert "\n" not in line
    assert words(line) == ["dir", text]


# --- nodes


def test_where_nodes_run() -> None:
    assert [node.address for node in Plan("single", "/x", hosts=("::1",)).nodes] == ["[::1]:6379"]
    local = Plan("sentinel", "/x")
    assert [node.port for node in local.nodes] == [6379, 6380, 6381]
    assert [node.port for node in local.sentinels] == [26379, 26380, 26381]
    three = Plan("cluster", "/x", hosts=("a", "b", "c"))
    assert [node.address for node in three.nodes] == ["a:6379", "b:6379", "c:6379", "a:6380", "b:6380", "c:6380"]
    six = Plan("cluster", "/x", hosts=tuple("abcdef"))
    assert {node.port for node in six.nodes} == {6379}
    assert len(Plan("cluster", "/x").nodes) == 6


@pytest.mark.parametrize("topology", ["single", "sentinel", "cluster"])
def test_the_notes_end_with_a_look_at_what_runs(topology: Any) -> None:
    """From wherever they are read: the files have their whole paths."""
    written = Plan(topology=topology, directory="/srv/a b")
    notes = {file.name: file.text for file in generate(written, Secrets.new(), "/srv/a b", "1:1")}["NEXT.md"]
    look = "(set -a; . '/srv/a b/secrets.env'; . '/srv/a b/operator.env'; scrubjay doctor)"
    assert look in notes.split("## The application")[0]
    assert "stays in the foreground" in notes
    assert (". '/srv/a b/operator.env'\n   VALKEYCLI_AUTH=" in notes) == (topology == "cluster")


def test_a_port_for_the_bus_is_one() -> None:
    with pytest.raises(ConfigurationError, match=r"port 75533 for the cluster's bus, 10,000 above its own"):
        Plan(topology="cluster", directory="/srv", port=65_533)


def test_a_journal_is_written_and_never_evicted() -> None:
    found = directives(made(Plan("single", "/x", role="journal", fsync="always"))["valkey.conf"].text)
    assert found["appendonly"] == [["yes"]]
    assert found["appendfsync"] == [["always"]]
    assert found["maxmemory-policy"] == [["noeviction"]]


@pytest.mark.parametrize("password", ["short", "x" * 513, "a password\nwith a line", "zero\0byte in a password", ""])
def test_passwords_that_cannot_be(password: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Secrets.new(password)
    assert not password or password not in str(refused.value)


def test_passwords_are_new_each_time() -> None:
    words = [word for _ in range(3) for word in Secrets.new().all()]
    assert len(set(words)) == len(words)
    assert all(len(word) >= 43 for word in words)
