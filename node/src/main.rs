//! Arguments to a call of one command; nothing else.

use clap::Parser;
use drover_node::cli::{self, Arguments};

/// RocksDB, TLS and a hundred thousand small queues fragment glibc's heap; jemalloc gives memory back and can say how
/// much it holds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    cli::run_to_end(Arguments::parse())
}
