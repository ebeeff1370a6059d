//! Compiles the protobuf packages with protox, so that there is no protoc to install.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "drover/record/v1/record.proto",
        "drover/cluster/v1/peer.proto",
        "drover/admin/v1/devices.proto",
        "drover/admin/v1/modules.proto",
        "drover/admin/v1/authorities.proto",
        "drover/admin/v1/messages.proto",
        "drover/admin/v1/commands.proto",
        "drover/admin/v1/methods.proto",
        "drover/admin/v1/cluster.proto",
        "drover/admin/v1/members.proto",
        "drover/admin/v1/backups.proto",
    ];
    println!("cargo::rerun-if-changed=drover");
    let descriptors = protox::compile(files, ["."])?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Only the public package is offered through reflection.
    let public = prost_types_of(protox::compile(&files[2..], ["."])?);
    std::fs::write(out.join("admin.bin"), public)?;

    // Peers speak in records, so the records are named by their path here and compiled by themselves below.
    tonic_prost_build::configure()
        .bytes(".drover.cluster.v1")
        .extern_path(".drover.record.v1", "crate::record")
        .compile_fds(descriptors)?;
    tonic_prost_build::configure()
        .bytes(".drover.record.v1")
        .compile_fds(protox::compile(&files[..1], ["."])?)?;
    Ok(())
}

fn prost_types_of(descriptors: impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
