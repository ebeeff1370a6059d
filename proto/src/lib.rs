//! The protobuf packages: what crosses a process or survives a restart. No logic.
//!
//! - [`admin`]: the public gRPC API, `drover.admin.v1`
//! - [`cluster`]: node to node, `drover.cluster.v1`
//! - [`record`]: the log and the disk, `drover.record.v1`

#[expect(
    clippy::large_enum_variant,
    reason = "the generator boxes nothing, and results of many commands pass by one after the other"
)]
pub mod admin {
    tonic::include_proto!("drover.admin.v1");

    /// The descriptors of this package, for gRPC server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/admin.bin"));
}

pub mod cluster {
    tonic::include_proto!("drover.cluster.v1");
}

#[expect(
    clippy::large_enum_variant,
    reason = "the generator boxes nothing, and changes of the meta state are few"
)]
pub mod record {
    tonic::include_proto!("drover.record.v1");
}
