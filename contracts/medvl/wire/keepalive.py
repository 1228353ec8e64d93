"""gRPC options by which both sides notice that the other has gone without a word: its host died, or a firewall forgot.

Nothing on such a connection fails by itself before TCP gives up, after a quarter of an hour. So each side pings when it
has heard nothing for a while. A server ends connections on which more pings come than it permits: here are both sides.
"""

_CLIENT_PING_MS = 20_000
_CLIENT_PATIENCE_MS = 20_000

CLIENT_OPTIONS = (
    ("grpc.keepalive_time_ms", _CLIENT_PING_MS),
    ("grpc.keepalive_timeout_ms", _CLIENT_PATIENCE_MS),
    # Of the pings that measure bandwidth: while one is under way, gRPC sends no other.
    ("grpc.http2.ping_timeout_ms", _CLIENT_PATIENCE_MS),
    # A call that waits for its answer sends nothing, as long as that takes.
    ("grpc.http2.max_pings_without_data", 0),
)
"""Of a channel to a service; it pings while a call is open."""
SERVER_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_MS // 4),
)
"""Of the service."""
