"""The gRPC protocol ``medvl.wire.v1`` and its codecs."""
