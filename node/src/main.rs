//! Arguments to a call of one command, its failure to an exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use drover_node::cli::{self, Arguments};

/// RocksDB, TLS and a hundred thousand small queues fragment glibc's heap; jemalloc gives memory back and can say how
/// much it holds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match cli::call(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("drover: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
