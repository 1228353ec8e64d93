"""The embedded runtime: Triton and the orchestrator on loopback, without a container.

``medvl up`` is :mod:`medvl.runtime.cli`; programs use :class:`medvl.runtime.system.EmbeddedSystem`.
"""
