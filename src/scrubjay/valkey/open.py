"""The way to the servers of a cache URL, whatever their topology."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.ports import Link
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.cluster import ClusterClient
from scrubjay.valkey.cluster_line import ClusterLink
from scrubjay.valkey.commands import Script
from scrubjay.valkey.line import Lines, ValkeyLink
from scrubjay.valkey.tracking import TrackingLink
from scrubjay.valkey.url import CacheKind, CacheUrl

AnyClient = ValkeyClient | ClusterClient


def client_of(
    url: CacheUrl, *, deadline: float, scripts: Sequence[Script] = (), provider: CredentialProvider | None = None
) -> AnyClient:
    """Return a client of what a URL names.

    Args:
        url: One server, Sentinels, or a cluster.
        deadline: Seconds that one round trip may take, connecting included.
        scripts: The scripts to load on connecting.
        provider: Gives the credentials; None for those of the URL.

    Raises:
        ConfigurationError: `url` names no server, or its TLS files cannot be used.
    """
    kind = ClusterClient if url.kind is CacheKind.CLUSTER else ValkeyClient
    return kind(url, deadline=deadline, scripts=scripts, provider=provider)


def link_of(client: AnyClient, lines: Lines, default_tenant: str) -> Link:
    """Return the line over which a process hears of changes.

    Args:
        client: The way that changes go.
        lines: The channels.
        default_tenant: The tenant of foreign messages that name none.
    """
    if isinstance(client, ClusterClient):
        return ClusterLink(client, lines, default_tenant)
    return (TrackingLink if lines.tracked else ValkeyLink)(client, lines, default_tenant)
