"""The embedded runtime: Triton and the orchestrator on loopback, without a container."""
