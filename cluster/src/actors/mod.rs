//! Actors, routing, back-pressure.
//!
//! ```text
//! Cluster ── admission ── router ──▶ a peer, or here:
//!
//! NodeActor                     one a node; starts and restarts the shards' actors
//! └─ ShardActor                 one a local replica; active while this node leads it
//!    ├─ DeviceActor             one an active device; made on first use, stopped when idle
//!    └─ Proposer (a task)       one queue into the group ──▶ Raft ──▶ outcomes, effects
//! ```
//!
//! Requests go down, effects come up from the proposer to the shard's actor and from there to devices. No actor waits
//! for another: callers wait in the proposer, whose answers need no actor.
//!
//! What a restart loses: of a device's actor, the requests in its inbox; of a shard's actor, in addition the addresses
//! of sessions, which are announced again. Callers of lost requests are told to try again, or that the outcome is unknown
//! if their change was under way.

mod addresses;
mod admission;
mod announce;
pub mod backups;
mod balance;
mod calls;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod config;
mod deferrals;
mod delay;
mod departed;
mod device;
mod dispatch;
mod drain;
mod due;
pub mod error;
mod held;
mod initial;
mod live;
pub mod members;
pub mod methods;
mod mover;
mod mutant;
mod neighbours;
mod node;
mod outbox;
mod pace;
mod proposer;
mod registry;
mod reply;
mod retain;
mod router;
mod serve;
pub mod session;
mod sessions;
mod shard;
mod status;
mod streams;
#[cfg(test)]
mod tests;
pub mod upgrade;
