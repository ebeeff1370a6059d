//! The gRPC API `drover.admin.v1`.
