//! The rules of the hub. No clock, no async, no bytes on a wire or a disk, no chance.
//!
//! A change goes in with the records that it touches, an outcome and effects come out, the same on every replica.

pub mod access;
pub mod authority;
pub mod change;
mod command;
pub mod delivery;
pub mod device;
pub mod document;
pub mod feedback;
pub mod ids;
pub mod leaders;
pub mod level;
pub mod mailbox;
pub mod membership;
pub mod message;
pub mod meta;
pub mod method;
pub mod module;
pub mod moves;
#[doc(hidden)]
pub mod mutants;
pub mod placement;
pub mod presence;
pub mod shard;
pub mod stream;
pub mod twin;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod script;
#[cfg(test)]
mod testing;
