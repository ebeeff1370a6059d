//! Breaks clusters on purpose, from a seed, and measures them.
//!
//! Everything here stands outside the product and depends on it, never the other way. Real so far: [`load`] and
//! [`bench`] drive real processes over sockets, and [`kill`] ends them with SIGKILL and holds what they acknowledged
//! against what they kept ([`promises`]). The simulation (virtual time, a disk that loses what was not synced) finds
//! what SIGKILL cannot: a kernel keeps unsynced pages of a killed process.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "figures are read to three digits, and counts of a run are far below 2^52"
)]

pub mod bench;
pub mod disk;
pub mod fleet;
pub mod history;
pub mod kill;
pub mod load;
pub mod mqtt;
pub mod nodes;
pub mod peers;
pub mod ports;
pub mod process;
pub mod promises;
pub mod sas;
#[cfg(feature = "sim")]
pub mod sim;
