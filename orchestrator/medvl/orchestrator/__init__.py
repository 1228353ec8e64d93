"""The gRPC service that chains Triton's models into reports, answers and masks."""
