//! Breaks clusters on purpose, from a seed, and measures them.
//!
//! Everything here stands outside the product and depends on it, never the other way. [`load`] and [`bench`] drive real
//! processes over sockets, [`kill`] ends them with SIGKILL and holds what they acknowledged against what they kept
//! ([`promises`]), and [`run`] gives each a [`net`] and a [`disk`] of its own that can be taken apart. The simulation does the
//! same on virtual time, where a seed decides everything.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "figures are read to three digits, and counts of a run are far below 2^52"
)]

pub mod bench;
pub mod command;
pub mod disk;
pub mod fleet;
pub mod history;
pub mod http;
pub mod kill;
pub mod load;
pub mod mqtt;
pub mod net;
pub mod nodes;
pub mod peers;
pub mod ports;
pub mod process;
pub mod promises;
pub mod run;
pub mod sas;
#[cfg(feature = "sim")]
pub mod sim;
