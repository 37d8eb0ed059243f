"""A worker process of a run; see `scrubjay.testing.chaos.worker`."""

from __future__ import annotations

from scrubjay.testing.chaos.worker import main

if __name__ == "__main__":
    main()
