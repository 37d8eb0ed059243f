"""Agents: structured, versioned configurations that a tenant's users share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.cache.source import Source, recalling
from scrubjay.core.errors import InvalidContent
from scrubjay.core.frozen import FrozenList
from scrubjay.core.keys import Kind
from scrubjay.core.policy import MAX_VERSION, check_limit
from scrubjay.core.ports import Load, Mutation, Op, Read, Shape
from scrubjay.core.records import AgentConfig
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import decode
from scrubjay.memory.services import Services


def source(services: Services, scope: Scope, agent: str) -> Source[AgentConfig | None]:
    """Return how an agent's configuration is read."""
    tenant = Scope(scope.tenant)
    return recalling(
        Source(
            Read(services.keys.agent(tenant, agent), Shape.HASH),
            Load(Kind.AGENT, tenant, agent),
            decode.agent,
            local=True,
            tally=services.tallies.of(scope.tenant, Kind.AGENT),
        )
    )


class Agents:
    """The agents of one tenant."""

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._scope = scope

    async def set(self, id: str, config: Mapping[str, Any], *, expected_version: int | None = None) -> AgentConfig:
        """Replace an agent's configuration.

        Args:
            id: The agent's id.
            config: Names with JSON values. `system_prompt` is what a window begins with; `assembly` changes how its
                windows are divided (`AssemblyPolicy.override`); `model` says which provider's rules hold.
            expected_version: Write only if the agent still has this version.

        Raises:
            InvalidContent: It is no mapping, or a value is not JSON.
            InvalidLimit: A setting of `assembly` is unknown or out of range.
            VersionConflict: Somebody else wrote meanwhile.
        """
        agent = self._agent(id)
        if not isinstance(config, Mapping) or not config:
            raise InvalidContent("an agent's configuration is a dict with at least one setting")
        self._services.check_agent(config)
        limits = self._services.policies.limits
        if expected_version is not None:
            check_limit(expected_version, "expected_version", most=MAX_VERSION, least=0)
        fields = decode.encode_fields(config, "setting", max_bytes=limits.message_bytes, most=limits.agent_fields)
        encoded = {key.encode(): value for key, value in sorted(fields.items())}
        cached = self._services.keys.agent(self._scope, agent)
        written = await self._services.aside.write(
            self._scope.tenant,
            Kind.AGENT,
            [cached],
            self._services.store.agent_put(self._scope, agent, encoded, expected=expected_version),
            lambda done: (done, [Mutation(cached, Op.REPLACE, done.version, done.previous, fields=encoded)]),
        )
        stored = AgentConfig(decode.from_fields(encoded))
        stored.version = written.version
        return stored

    async def get(self, id: str) -> AgentConfig | None:
        """Return an agent's configuration (`.version` is its version); None if there is none."""
        return await self._services.aside.get(source(self._services, self._scope, self._agent(id)))

    async def list(self, limit: int = 1_000) -> FrozenList[str]:
        """Return the ids of the tenant's agents in order."""
        self._services.check_open()
        check_limit(limit, "limit", most=self._services.policies.limits.page, least=0)
        return FrozenList(await self._services.store.agents(self._scope, limit))

    async def delete(self, id: str) -> bool:
        """Delete an agent's configuration; return whether there was one."""
        agent = self._agent(id)
        cached = self._services.keys.agent(self._scope, agent)
        written = await self._services.aside.write(
            self._scope.tenant,
            Kind.AGENT,
            [cached],
            self._services.store.agent_delete(self._scope, agent),
            lambda done: None if done is None else (done, [Mutation(cached, Op.DROP, done.version)]),
        )
        return written is not None

    def _agent(self, id_: str) -> str:
        self._services.check_open()
        return check_id(id_, "agent id")
