"""Generate the stubs of ``medvl.wire.v1`` from ``medvl.proto``.

    python scripts/proto.py [FOLDER]

The stubs go below FOLDER, by default the source root of the contract, where they are committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

CONTRACTS = Path(__file__).parents[1] / "contracts"
PROTO = "medvl/wire/v1/medvl.proto"


def generate(out: Path) -> None:
    """Write the stubs below a folder, as ``medvl/wire/v1/medvl_pb2*``."""
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"--proto_path={CONTRACTS}", *outputs, PROTO])
    if status:
        sys.exit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else CONTRACTS)
