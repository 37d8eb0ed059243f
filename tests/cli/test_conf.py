"""`scrubjay conf`: what it writes and says, and real servers that are started from it, attacked and used."""

from __future__ import annotations

import asyncio
import re
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis

from scrubjay import AsyncScrubjay
from scrubjay.observe.conf import acl
from scrubjay.observe.conf.plan import Plan
from scrubjay.testing.hot_tier import HotTierSuite
from scrubjay.testing.servers import Flavour
from scrubjay.valkey import client as client_module
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.cluster import ClusterClient
from scrubjay.valkey.slots import slot_of
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url
from tests.cli.conf_servers import SENTINEL_STEP, Deployment, certify, deployed, environment, served
from tests.cli.conftest import Run
from tests.waiting import until_told, wait_until

FLAVOURS = [
    "valkey",
    pytest.param("redis8", marks=pytest.mark.full),
    pytest.param("redis7", marks=pytest.mark.system),
]
SECRET = "not the one & only; 'quoted' \"pass@word\" #1"
PATIENT_S = 30.0
LONG_S = 120.0

# --- what is written, and what is said


def passwords(out: Path) -> list[str]:
    """Return every password that the files hold."""
    app = urlsplit(environment(out / "secrets.env")["SCRUBJAY_CACHE"]).password or ""
    operator = environment(out / "operator.env")
    found = [app, operator["SCRUBJAY_ADMIN_PASSWORD"], urlsplit(operator["SCRUBJAY_MONITOR_CACHE"]).password or ""]
    for file in out.glob("*.conf"):
        found += re.findall(
            r'^(?:primaryauth|masterauth|sentinel auth-pass \S+) "(.+)"$', file.read_text(), re.MULTILINE
        )
    assert all(len(word) >= 16 for word in found)
    return found


@pytest.mark.parametrize("topology", ["single", "sentinel", "cluster"])
def test_files_and_their_modes(run: Run, tmp_path: Path, topology: str) -> None:
    out = tmp_path / "made" / "there"
    said = run("conf", topology, "--out", out, "--json").json
    assert said["topology"] == topology
    assert said["directory"] == str(out)
    assert {file["name"]: int(file["mode"], 8) for file in said["files"]} == {
        file.name: stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()
    }
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    public = {file.name for file in out.iterdir() if file.stat().st_mode & 0o077}
    assert public == {"compose.yaml", "NEXT.md"}
    for file in public:
        assert not any(word in (out / file).read_text() for word in passwords(out))
    assert not any(word in (out / "users.acl").read_text() for word in passwords(out))


@pytest.mark.parametrize("topology", ["single", "sentinel", "cluster"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_password_is_printed(run: Run, tmp_path: Path, topology: str, options: Sequence[str]) -> None:
    out = tmp_path / "conf"
    ran = run("conf", topology, "--out", out, *options)
    assert ran.code == 0
    assert "NEXT.md" in ran.out
    assert not any(word in ran.out + ran.err for word in passwords(out))


def test_nothing_is_written_over_unless_forced(run: Run, tmp_path: Path) -> None:
    assert run("conf", "single", "--out", tmp_path).code == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    ran = run("conf", "single", "--out", tmp_path)
    assert ran.code == 2
    assert "--force" in ran.error
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    assert run("conf", "single", "--out", tmp_path, "--force").code == 0
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"users.acl", "secrets.env", "operator.env"}


@pytest.mark.parametrize("there", ["valkey.conf", "secrets.env", "NEXT.md"])
def test_one_file_that_is_there_is_enough(run: Run, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    before = sorted(tmp_path.iterdir())
    ran = run("conf", "single", "--out", tmp_path)
    assert ran.code == 2
    assert there in ran.error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / there).read_text() == "mine"


def test_what_is_written_is_written_together_or_not_at_all(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the files with other passwords than the rest would keep the servers from starting."""
    out = tmp_path / "conf"
    assert run("conf", "sentinel", "--out", out).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    made = tempfile.mkstemp
    left = 3

    def full(**given: Any) -> tuple[int, str]:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return made(**given)

    monkeypatch.setattr("tempfile.mkstemp", full)
    ran = run("conf", "sentinel", "--out", out, "--force")
    assert ran.code == 74
    assert "No space left" in ran.error
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_directory_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "NEXT.md").mkdir()
    before = sorted(tmp_path.iterdir())
    ran = run("conf", "single", "--out", tmp_path, "--force")
    assert ran.code == 2
    assert "NEXT.md" in ran.error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--out", "--dir", "--tls-dir"])
def test_a_path_that_is_no_text(run: Run, tmp_path: Path, option: str) -> None:
    # The last one counts.
    ran = run("conf", "single", "--out", tmp_path / "conf", option, f"{tmp_path}/\udcff")
    assert ran.code == 2
    assert ran.error
    assert not (tmp_path / "conf").exists()


def test_a_link_is_replaced_and_not_followed(run: Run, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "conf"
    victim.write_text("mine")
    out.mkdir()
    (out / "secrets.env").symlink_to(victim)
    assert run("conf", "single", "--out", out).code == 2
    assert run("conf", "single", "--out", out, "--force").code == 0
    assert victim.read_text() == "mine"
    assert not (out / "secrets.env").is_symlink()


def test_a_password_from_a_file_or_the_environment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRUBJAY_CONF_PASSWORD", SECRET)
    ran = run("conf", "single", "--out", tmp_path / "a")
    assert parse_cache_url(environment(tmp_path / "a" / "secrets.env")["SCRUBJAY_CACHE"]).password == SECRET
    assert SECRET not in ran.out + ran.err
    file = tmp_path / "password"
    file.write_text("another one, from a file\nand no more\n")
    run("conf", "single", "--out", tmp_path / "b", "--password-file", file)
    found = parse_cache_url(environment(tmp_path / "b" / "secrets.env")["SCRUBJAY_CACHE"])
    assert found.password == "another one, from a file"
    assert found.username == "scrubjay"
    monkeypatch.setenv("SCRUBJAY_CONF_PASSWORD", "tooshort")
    refused = run("conf", "single", "--out", tmp_path / "c")
    assert refused.code == 2
    assert "tooshort" not in refused.err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("single", "--maxmemory", "much"),
        ("single", "--maxmemory", "1mb"),
        ("single", "--prefix", "a:b"),
        ("single", "--prefix", "*"),
        ("single", "--user", "admin"),
        ("single", "--user", "two words"),
        ("single", "--hosts", "a,b"),
        ("single", "--hosts", "a b"),
        ("single", "--hosts", "$(id)"),
        ("single", "--hosts", "fe80::1%eth0\nport 1"),
        ("single", "--hosts", ""),
        ("single", "--bind", "-"),
        ("single", "--bind", "0.0.0.0\nport 1"),
        ("single", "--port", 0),
        ("single", "--dir", "relative/path"),
        ("single", "--role", "journal", "--policy", "allkeys-lru"),
        ("single", "--fsync", "always"),
        ("single", "--no-tls", "--tls-dir", "there"),
        ("single", "--service", "x"),
        ("sentinel", "--hosts", "a,b"),
        ("sentinel", "--hosts", "a,a,b"),
        ("sentinel", "--hosts", "a,A,b"),
        ("sentinel", "--hosts", "::1,0::1,::2"),
        ("sentinel", "--service", "a b"),
        ("sentinel", "--port", 26378),
        ("cluster", "--port", 60_000),
        ("cluster", "--hosts", "a,b,c,d,e,f,g"),
    ],
)
def test_wrong_options(run: Run, tmp_path: Path, options: Sequence[object]) -> None:
    ran = run("conf", *options, "--out", tmp_path / "conf")
    assert ran.code == 2
    assert ran.error
    assert not (tmp_path / "conf").exists()


def test_without_a_topology_there_is_help(run: Run) -> None:
    ran = run("conf")
    assert ran.code == 0
    assert "sentinel" in ran.out


# --- servers take the files


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("topology", "only", "options"),
    [
        ("single", None, ()),
        ("single", None, ("--role", "journal")),
        ("single", None, ("--policy", "volatile-lru", "--maxmemory", "64mb", "--prefix", "shop.2_-")),
        ("single", None, ("--role", "journal", "--fsync", "everysec")),
        ("sentinel", "primary", ("--role", "journal")),
        ("sentinel", "replica-2", ()),
        ("sentinel", "sentinel-3", ()),
        ("cluster", "node-6", ()),
        ("cluster", "node-1", ("--role", "journal")),
        ("cluster", "node-2", ("--hosts", "cache-1.example,cache-2.example,cache-3.example")),
    ],
)
def test_a_server_starts(flavour: Flavour, topology: str, only: str | None, options: Sequence[str]) -> None:
    with served(topology, flavour, *options, only=only) as deployment:
        log = deployment.logs[0]()
        assert "FATAL" not in log
        with deployment.client("admin") as admin:
            assert admin.ping()
            if only == "sentinel-3":
                assert list(admin.sentinel_masters()) == ["scrubjay"]
                return
            found = admin.config_get("maxmemory-policy", "appendonly", "save", "appendfsync", "maxmemory")
        journal = "journal" in options
        policy = "volatile-lru" if "volatile-lru" in options else "allkeys-lru"
        assert found["maxmemory-policy"] == ("noeviction" if journal else policy)
        assert found["appendonly"] == ("yes" if journal else "no")
        assert found["save"] == ("3600 1" if journal else "")
        always = journal and topology == "single" and "everysec" not in options
        assert found["appendfsync"] == ("always" if always else "everysec")
        assert int(found["maxmemory"]) == (64 << 20 if "64mb" in options else 1 << 30)


def test_paths_relative_to_where_the_server_is_started() -> None:
    def moved(out: Path) -> None:
        text = (out / "valkey.conf").read_text()
        # `Nest` starts its servers in `/`: what it would be if they were started in the directory.
        assert 'dir "."\n' in text
        assert 'aclfile "users.acl"\n' in text
        (out / "valkey.conf").write_text(text.replace('dir "."', f'dir "{out}"'))

    with served("single", "valkey", "--dir", ".", prepare=moved) as deployment, deployment.client("admin") as admin:
        assert admin.ping()


# --- attacks


@pytest.fixture(scope="module", params=FLAVOURS)
def single(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """One server with the files of one, of each make."""
    with served("single", request.param) as deployment:
        yield deployment


@pytest.fixture
def fresh(single: Deployment) -> Iterator[Deployment]:
    """The server, empty, and with something of somebody else's on it."""
    with single.client("admin") as admin:
        admin.flushall()
        admin.set("foreign", "secret")
        admin.set("sj1x:almost", "secret")
        admin.acl_log_reset()
    yield single
    with single.client("admin") as admin:
        assert admin.mget("foreign", "sj1x:almost") == ["secret", "secret"]


# `DEBUG` is refused before anybody is asked who may; some commands no script may call; Redis 7 has its own words.
REFUSED = r"(?i)no permissions|ACL failure|not allowed|user executing the script can't"
FOREIGN_SCRIPT = "return redis.call('GET', 'foreign')"


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/tmp"),
        ("DEBUG", "SLEEP", "0"), ("SHUTDOWN", "NOSAVE"), ("SAVE",), ("BGSAVE",), ("BGREWRITEAOF",),
        ("REPLICAOF", "127.0.0.1", "1"), ("SLAVEOF", "NO", "ONE"), ("MODULE", "LIST"), ("ACL", "LIST"),
        ("ACL", "WHOAMI"),
        ("MONITOR",), ("SORT", "sj1:x"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"), ("FUNCTION", "LIST"), ("MIGRATE", "127.0.0.1", "1", "sj1:x", "0", "9"),
        ("RESTORE", "sj1:x", "0", "x"), ("DUMP", "sj1:x"), ("SYNC",), ("PSYNC", "?", "-1"), ("RANDOMKEY",),
        ("SELECT", "0"),
        ("SWAPDB", "0", "0"), ("OBJECT", "ENCODING", "sj1:x"), ("MEMORY", "PURGE"), ("SLOWLOG", "GET"),
        ("LATENCY", "LATEST"),
        ("CLUSTER", "INFO"), ("FAILOVER",), ("DEL", "sj1:x"), ("RENAME", "sj1:x", "sj1:y"), ("PSUBSCRIBE", "*"),
        ("DBSIZE",), ("COMMAND", "LIST"), ("PUBSUB", "CHANNELS"), ("READONLY",),
        ("GET", "foreign"), ("SET", "foreign", "x"), ("GET", "sj1x:almost"), ("MGET", "sj1:a", "foreign"),
        ("GET", "sj1"),
        ("UNLINK", "sj1:a", "foreign"), ("HGETALL", "other:x"), ("LRANGE", "other:x", "0", "-1"),
        ("PUBLISH", "other", "x"), ("PUBLISH", "sj1", "x"), ("SUBSCRIBE", "other"), ("SUBSCRIBE", "__sentinel__:hello"),
        ("SUBSCRIBE", "__keyspace@0__:foreign"),
        ("EVAL", FOREIGN_SCRIPT, "0"), ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("EVAL", "return 1", "1", "foreign"),
        ("EVAL", "return redis.call('CONFIG', 'GET', '*')", "0"),
        ("EVAL", "return redis.call('PUBLISH', 'other', 'x')", "0"),
        ("EVAL", "return redis.call('KEYS', '*')", "0"),
        ("EVAL", "redis.setresp(3) return redis.call('DEL', 'sj1:x')", "0"),
    ],
    ids=lambda command: " ".join(command)[:60],
)  # fmt: skip
def test_the_application_may_not(fresh: Deployment, command: Sequence[str]) -> None:
    with fresh.client("app") as app, pytest.raises(redis.ResponseError) as refused:
        app.execute_command(*command)
    assert re.search(REFUSED, str(refused.value)), refused.value


def test_what_is_queued_is_refused_as_well(fresh: Deployment) -> None:
    with fresh.client("app") as app:
        pipe = app.pipeline(transaction=True)
        pipe.set("sj1:x", "1")
        pipe.get("foreign")
        with pytest.raises(redis.ResponseError):
            pipe.execute()
        assert app.get("sj1:x") is None


def test_a_script_that_is_loaded_by_another_runs_with_the_rights_of_its_caller(fresh: Deployment) -> None:
    with fresh.client("admin") as admin:
        digest = admin.script_load(FOREIGN_SCRIPT)
        assert admin.evalsha(digest, 0) == "secret"
    with fresh.client("app") as app, pytest.raises(redis.ResponseError, match=REFUSED):
        app.evalsha(digest, 0)


def test_names_of_foreign_keys_are_seen_as_the_notes_say(fresh: Deployment) -> None:
    """No access list prevents that; if a server learns to, NEXT.md is to be changed."""
    with fresh.client("app") as app:
        assert "foreign" in list(app.scan_iter(count=1_000))


@pytest.mark.parametrize("command", [("PING",), ("GET", "sj1:x"), ("INFO",), ("CONFIG", "GET", "*"), ("FLUSHALL",)])
def test_without_logging_in_nothing_is_answered(single: Deployment, command: Sequence[str]) -> None:
    refused = pytest.raises(redis.AuthenticationError, match="Authentication required")
    with single.client(None) as nobody, refused:
        nobody.execute_command(*command)


def test_wrong_passwords_and_users(single: Deployment) -> None:
    _, right = single.login("app")
    (hashed,) = re.findall(r"^user scrubjay on #(\w+)", (single.directory / "users.acl").read_text(), re.MULTILINE)
    for name, password in [
        ("scrubjay", "wrong"), ("scrubjay", right[:-1]), ("scrubjay", ""), ("scrubjay", hashed), ("admin", right),
        ("default", right), ("default", ""), ("default", "default"), ("monitor", right), ("nobody", right),
    ]:  # fmt: skip
        with single.client(None) as client:
            with pytest.raises((redis.AuthenticationError, redis.ResponseError), match=r"WRONGPASS|invalid username"):
                client.execute_command("AUTH", name, password)
            with pytest.raises((redis.AuthenticationError, redis.ResponseError)):
                client.execute_command("AUTH", password)


def test_the_monitor_looks_and_does_not_touch(fresh: Deployment) -> None:
    with fresh.client("app") as app:
        app.set("sj1:x", "of a user")
    with fresh.client("monitor") as monitor:
        assert monitor.info()["maxmemory_policy"] == "allkeys-lru"
        assert monitor.config_get("maxmemory")
        assert monitor.memory_usage("sj1:x")
        monitor.slowlog_get()
        monitor.latency_latest()
        for command in [
            ("GET", "sj1:x"), ("SET", "sj1:x", "1"), ("SCAN", "0"), ("CONFIG", "SET", "maxmemory", "1"),
            ("ACL", "LIST"),
            ("CONFIG", "RESETSTAT"), ("SLOWLOG", "RESET"), ("MEMORY", "PURGE"), ("MEMORY", "USAGE", "foreign"),
            ("MONITOR",),
            ("SUBSCRIBE", "sj1:changes"), ("CLIENT", "KILL", "TYPE", "normal"), ("EVAL", "return 1", "0"),
            ("DUMP", "sj1:x"),
        ]:  # fmt: skip
            with pytest.raises(redis.ResponseError):
                monitor.execute_command(*command)


# --- the library works

CODE = Path(client_module.__file__).parent
NO_AUTH = {"auth"}
"""Allowed to everybody."""


def commands_of_the_code() -> set[str]:
    """Return the commands that the library and its scripts contain."""
    found = set()
    for file in (CODE / "scripts").glob("*.lua"):
        text = re.sub(r"'(PUBSUB)', '([A-Z]+)'", r"'\1|\2'", file.read_text())
        found |= {word.lower() for word in re.findall(r"'([A-Z|]{3,})'", text)} - {"oom", "keepttl"}
    # What the doctor and `size` ask is asked as an operator, or may be refused.
    asked = ("examine.py", "key_kinds.py", "key_sizes.py", "questions.py", "scan.py")
    others = {CODE / name for name in ("embedded.py", *asked)}
    assert all(file.is_file() for file in others)
    for file in set(CODE.glob("*.py")) - others:
        # What servers say of certificates is no command.
        text = re.sub(r"(?m)^_REFUSED = .*$", "", file.read_text())
        for first, second in re.findall(r'\(\s*"([A-Z]{3,})"(?:,\s*"([A-Z-]+)")?', text):
            container = first in {"CLIENT", "CLUSTER", "SCRIPT", "SENTINEL"}
            found.add(f"{first}|{second}".lower() if container else first.lower())
    # A word in a command.
    return found - {"streams"}


def test_the_application_may_do_what_it_does_and_no_more() -> None:
    used = commands_of_the_code()
    assert {"evalsha", "mget", "zadd", "lset", "client|tracking", "script|load", "info"} <= used
    of_a_cluster = {command for command in used if command.startswith("cluster|")} | {"asking"}
    of_sentinels = {command for command in used if command.startswith("sentinel|")}
    assert set(acl.CLUSTER) == of_a_cluster
    assert set(acl.ASKING_SENTINELS) == of_sentinels
    # With one database there is none to choose.
    every = {name.partition("|")[0] if name.startswith(("config", "xgroup")) else name for name in acl.JOURNAL}
    assert not every & set(acl.APP)
    assert set(acl.APP) | every == used - of_a_cluster - of_sentinels - NO_AUTH - {"select"}


def test_what_a_topology_adds() -> None:
    for topology in ("single", "sentinel", "cluster"):
        more = set(acl.app_commands(Plan(topology, "/x"))) - set(acl.APP)
        assert more == (set(acl.CLUSTER) if topology == "cluster" else set())
    assert set(acl.app_commands(Plan("single", "/x", role="journal"))) - set(acl.APP) == set(acl.JOURNAL)


class AppRig:
    """A tier of the application's user."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.tiers: list[ValkeyTier] = []
        self.tier = self.make("store")

    def make(self, incarnation: str) -> ValkeyTier:
        client = ValkeyClient(parse_cache_url(self.deployment.cache), scripts=SCRIPTS, deadline=PATIENT_S)
        self.tiers.append(ValkeyTier(client, incarnation, 5_000))
        return self.tiers[-1]

    async def other(self, incarnation: str) -> ValkeyTier:
        return self.make(incarnation)

    async def evict(self, keys: Sequence[str]) -> None:
        with self.deployment.client("admin") as admin:
            admin.unlink(*keys)


@pytest.fixture
async def rig(fresh: Deployment) -> AsyncIterator[AppRig]:
    rig = AppRig(fresh)
    yield rig
    for tier in rig.tiers:
        await tier.close()
    assert fresh.denied() == []


@pytest.mark.full
class TestConformance(HotTierSuite):
    """The public suite, as the application's user: nothing of it may be refused."""

    async def test_clearing_takes_all_of_one_prefix(self, rig: AppRig) -> None:  # type: ignore[override]
        """The suite's own test writes under other prefixes, which this user may not."""
        for n in range(30):
            assert await rig.tier.note(f"sj1:{n}", "x", 60_000)
        assert await rig.tier.clear("sj1")
        with rig.deployment.client("admin") as admin:
            assert sorted(admin.scan_iter()) == ["foreign", "sj1x:almost"]


@pytest.mark.parametrize("coherence", ["pubsub", pytest.param("tracking", marks=pytest.mark.full)])
async def test_the_library_works(fresh: Deployment, tmp_path: Path, coherence: str) -> None:
    async with two(fresh, tmp_path, coherence) as (jay, other):
        await use(jay, other)

        async def both_are_seen() -> bool:
            return (await jay.stats())["processes"] == 2

        await until_told(both_are_seen, patience_s=LONG_S)
        stats = await jay.stats()
        assert stats["server"]["used_memory"] > 0
        assert stats["reads"]["hits"] > 0
    assert fresh.denied() == []
    with fresh.client("admin") as admin:
        assert {key.partition(":")[0] for key in admin.scan_iter()} == {"sj1", "foreign", "sj1x"}


@asynccontextmanager
async def two(
    deployment: Deployment, tmp_path: Path, coherence: str = "pubsub"
) -> AsyncIterator[tuple[AsyncScrubjay, AsyncScrubjay]]:
    """Open what stands for two processes with the URL that was written, and wait until they hear of each other."""
    settings: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/store.db", "cache": deployment.cache, "coherence": coherence,
        "cache_timeout": PATIENT_S, "cache_deadline": PATIENT_S,
    }  # fmt: skip
    async with AsyncScrubjay.open(**settings) as jay, AsyncScrubjay.open(**settings) as other:
        await well(jay, other)
        yield jay, other


async def well(*jays: AsyncScrubjay) -> None:
    """Wait until the cache answers and process memory is believed."""

    async def all_well() -> bool:
        found = [await jay.health() for jay in jays]
        return all(health["cache"]["ok"] and health["memory"]["ok"] for health in found)

    await until_told(all_well, patience_s=LONG_S)


async def use(jay: AsyncScrubjay, other: AsyncScrubjay) -> None:
    """Do what an application does, and see that another process hears of it."""
    alice = jay.tenant("acme").user("alice")
    twin = other.tenant("acme").user("alice")
    session = alice.session(f"s{uuid4().hex[:6]}")
    await jay.tenant("acme").agents.set("support", {"system_prompt": "Be brief."})
    await alice.memory.set("style", "brief")
    for plan in ("free", "pro"):
        await alice.contexts.set("profile", {"plan": plan})

        async def heard(plan: str = plan) -> bool:
            return await twin.contexts.latest("profile") == {"plan": plan}

        await until_told(heard, patience_s=LONG_S)
    await session.chat.append(role="user", content="Where is it?")
    await session.state.set("topic", "billing")
    await session.tools.record(step=1, name="look", arguments={}, output={"status": "sent"})
    for _ in range(3):
        window = await session.assemble(budget=2_000, agent="support")
    assert "Where is it?" in str(window.messages)
    assert await alice.contexts.list("profile")
    await alice.contexts.invalidate("profile")
    await alice.invalidate()
    await jay.tenant("acme").invalidate()
    assert await twin.contexts.latest("profile") == {"plan": "pro"}
    await session.close()
    await alice.forget()
    assert await alice.contexts.latest("profile") is None


# --- TLS: of the servers of the tests, only Debian's is built with it


@pytest.mark.system
@pytest.mark.parametrize("clients", ["optional", "yes"])
async def test_tls_with_certificates_made_as_the_notes_say(tmp_path: Path, clients: str) -> None:
    with served("single", "redis7", "--tls", "--tls-auth-clients", clients, prepare=certify) as deployment:
        url = deployment.cache
        assert url.startswith("rediss://")
        async with AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/s.db", cache=url, cache_timeout=PATIENT_S) as jay:
            assert (await jay.health())["cache"]["ok"]
        with pytest.raises(redis.ConnectionError), deployment.client(None) as plain:
            plain.ping()
        ca = str(deployment.directory / "tls" / "ca.crt")
        name, password = deployment.login("app")
        bare = redis.Redis(port=deployment.port, username=name, password=password, ssl=True, ssl_ca_certs=ca)
        with bare:
            if clients == "optional":
                assert bare.ping()
            else:
                with pytest.raises(redis.ConnectionError):
                    bare.ping()


# --- whole topologies

ARRANGED = [
    *(pytest.param(each, (), id=each) for each in ("valkey", "redis8")),
    pytest.param("redis7", (), id="redis7", marks=pytest.mark.system),
    pytest.param("redis7", ("--tls", "--tls-auth-clients", "yes"), id="redis7-tls", marks=pytest.mark.system),
]


@pytest.mark.full
@pytest.mark.parametrize(("flavour", "options"), ARRANGED)
@pytest.mark.timeout(600)
async def test_sentinels_replace_a_primary(flavour: Flavour, options: Sequence[str], tmp_path: Path) -> None:
    with deployed("sentinel", flavour, tmp_path / "conf", *options) as (deployment, nests):
        ports = [deployment.port + number for number in range(3)]
        sentinel_ports = [deployment.port + SENTINEL_STEP + number for number in range(3)]

        def seen(port: int) -> dict[str, Any]:
            with deployment.client("admin", port) as admin:
                return admin.sentinel_master("scrubjay")

        def all_know_all() -> bool:
            found = [seen(port) for port in sentinel_ports]
            return all(each["num-slaves"] == 2 and each["num-other-sentinels"] == 2 for each in found)

        await wait(all_know_all, "the Sentinels know of each other and of the replicas")
        await wait(lambda: _replicas(deployment, ports[0]) == 2, "both replicas follow")
        async with two(deployment, tmp_path) as (jay, other):
            await use(jay, other)
            assert [deployment.denied(port) for port in [*ports, *sentinel_ports]] == [[]] * 6
            # The application may ask the Sentinels, and no more.
            with deployment.client("app", sentinel_ports[0]) as app:
                for command in [
                    ("SENTINEL", "FAILOVER", "scrubjay"), ("SENTINEL", "RESET", "*"), ("SENTINEL", "MASTERS"),
                    ("SENTINEL", "REPLICAS", "scrubjay"), ("SUBSCRIBE", "+switch-master"), ("INFO",), ("SHUTDOWN",),
                    ("ACL", "LIST"),
                ]:  # fmt: skip
                    with pytest.raises(redis.ResponseError, match=REFUSED):
                        app.execute_command(*command)
            nests["primary"].kill()

            def primary() -> int:
                with deployment.client("admin", sentinel_ports[1]) as admin:
                    return int(admin.sentinel_get_master_addr_by_name("scrubjay")[1])

            await told_meanwhile(jay, other)
            await wait(lambda: primary() != ports[0], "another primary")
            await wait(lambda: _replicas(deployment, primary()) == 1, "the other replica follows")
            await well(jay, other)
            await use(jay, other)
            for port in [*ports[1:], *sentinel_ports[1:]]:
                assert deployment.denied(port) == []
            assert _refused(deployment, sentinel_ports[0]) == {"scrubjay"}
            # Without its last replica a primary takes nothing any more.
            last = next(port for port in ports[1:] if port != primary())
            nests[f"replica-{last - ports[0]}"].kill()

            def refuses() -> bool:
                with deployment.client("app", primary()) as app:
                    try:
                        return not app.set("sj1:x", "2")
                    except redis.ResponseError as error:
                        return "NOREPLICAS" in str(error)

            await wait(refuses, "writes are refused")
            await told_meanwhile(jay, other)


async def wait(condition: Callable[[], object], what: str) -> None:
    """Wait for what is asked of servers, while the library goes on."""
    await asyncio.to_thread(wait_until, condition, what, patience_s=LONG_S)


async def told_meanwhile(jay: AsyncScrubjay, other: AsyncScrubjay) -> None:
    """Write and read without a cache that takes it."""
    mark = uuid4().hex
    await jay.tenant("acme").user("bob").contexts.set("profile", {"mark": mark})

    async def heard() -> bool:
        return await other.tenant("acme").user("bob").contexts.latest("profile") == {"mark": mark}

    await until_told(heard, patience_s=LONG_S)


def _refused(deployment: Deployment, port: int) -> set[str]:
    """Return the users to whom a server has refused anything."""
    return {str(entry["username"]) for entry in deployment.denied(port)}


def _replicas(deployment: Deployment, port: int) -> int:
    with deployment.client("admin", port) as admin:
        found = admin.info("replication")
    return sum(found.get(f"slave{number}", {}).get("state") == "online" for number in range(2))


@pytest.mark.full
@pytest.mark.parametrize(("flavour", "options"), ARRANGED)
@pytest.mark.timeout(600)
async def test_nodes_make_a_cluster(flavour: Flavour, options: Sequence[str], tmp_path: Path) -> None:
    with deployed("cluster", flavour, tmp_path / "conf", *options) as (deployment, nests):
        ports = [deployment.port + number for number in range(6)]
        await asyncio.to_thread(_join, deployment, ports)
        async with two(deployment, tmp_path) as (jay, other):
            await use(jay, other)
            await _sent_on(deployment, ports)
            assert [deployment.denied(port) for port in ports] == [[]] * 6
            with deployment.client("app", ports[0]) as app:
                for command in [
                    ("CLUSTER", "RESET"), ("CLUSTER", "FORGET", "x"), ("CLUSTER", "MEET", "127.0.0.1", "1"),
                    ("CLUSTER", "FAILOVER"), ("CLUSTER", "GETKEYSINSLOT", "0", "9"), ("READONLY",),
                ]:  # fmt: skip
                    with pytest.raises(redis.ResponseError, match=REFUSED):
                        app.execute_command(*command)
            nests["node-1"].kill()
            await told_meanwhile(jay, other)

            def state() -> str:
                with deployment.client("monitor", ports[1]) as monitor:
                    return str(monitor.execute_command("CLUSTER INFO")["cluster_state"])

            def primaries() -> set[int]:
                with deployment.client("admin", ports[1]) as admin:
                    return {found[2][1] for found in admin.execute_command("CLUSTER", "SLOTS")}

            await wait(lambda: ports[0] not in primaries(), "the replica takes over")
            await wait(lambda: state() == "ok", "the cluster is whole")
            await well(jay, other)
            await use(jay, other)
            for port in ports[1:]:
                assert deployment.denied(port) == []


async def _sent_on(deployment: Deployment, ports: Sequence[int]) -> None:
    """Write a key whose slot is on its way to another node: the application is sent there, and has to ask."""
    key = "sj1:on-its-way"
    slot = slot_of(key)
    source = min(slot // (16_384 // 3), 2)
    target = (source + 1) % 3
    client = ClusterClient(parse_cache_url(deployment.cache), deadline=PATIENT_S)
    with deployment.client("admin", ports[source]) as old, deployment.client("admin", ports[target]) as new:
        ids = [each.execute_command("CLUSTER", "MYID") for each in (old, new)]
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        try:
            assert await client.call([("SET", key, "1"), ("GET", key)]) == [b"OK", b"1"]
            assert new.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
            for each in (new, old):
                each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            assert await client.call([("GET", key)]) == [b"1"]
        finally:
            await client.close()


def _join(deployment: Deployment, ports: Sequence[int]) -> None:
    """Do what `--cluster create` does: the packages bring no command line client."""
    third = 16_384 // 3
    for number, port in enumerate(ports):
        with deployment.client("admin", port) as admin:
            if number < 3:
                last = 16_383 if number == 2 else (number + 1) * third - 1
                admin.execute_command("CLUSTER", "ADDSLOTSRANGE", number * third, last)
            admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in ports[:number]:
                admin.execute_command("CLUSTER", "MEET", "127.0.0.1", other)

    def known(port: int) -> dict[str, str]:
        with deployment.client("admin", port) as admin:
            return dict(admin.execute_command("CLUSTER INFO"))

    wait_until(lambda: all(known(port)["cluster_known_nodes"] == "6" for port in ports), "they know", patience_s=LONG_S)
    wait_until(
        lambda: all(known(port)["cluster_state"] == "ok" for port in ports), "slots are known", patience_s=LONG_S
    )
    for number, port in enumerate(ports[3:]):
        with deployment.client("admin", ports[number]) as primary, deployment.client("admin", port) as admin:
            admin.execute_command("CLUSTER", "REPLICATE", primary.execute_command("CLUSTER", "MYID"))

    def followed(port: int) -> bool:
        with deployment.client("admin", port) as admin:
            return any(
                found.get("state") == "online"
                for found in admin.info("replication").values()
                if isinstance(found, dict)
            )

    wait_until(lambda: all(followed(port) for port in ports[:3]), "replicas follow", patience_s=LONG_S)
