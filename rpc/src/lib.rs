//! JSON-RPC 2.0 over a Unix socket, framed as SPDK's clients expect. Knows no storage.
