//! A disk that loses what was not synced, on purpose.
//!
//! A kernel keeps what a killed process has written, so SIGKILL proves nothing about fsync. Here a file system of our own
//! (FUSE, so it needs root and /dev/fuse) stands below a real node: [`volume`] says what survives a power loss, [`bytes`]
//! keeps what undoes a file's unsynced writes, [`behaviour`] makes syncs slow, hung or failing and refuses writes, [`rot`] gives bits back wrong and
//! [`block`] knows where that must be noticed, [`server`] answers the kernel and [`mounted`] is the handle.

mod behaviour;
mod block;
mod bytes;
mod mounted;
mod rot;
mod server;
#[cfg(test)]
mod tests;
mod volume;

pub use behaviour::{Behaviour, Counters, Flips, Sync, Writes};
pub use mounted::{Disk, obstacle, remove_stale};
pub use volume::{Kept, Loss};
