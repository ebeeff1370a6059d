//! A network that can be taken apart.
//!
//! Where this process is root, each node gets a network namespace of its own: [`lab`] makes them and takes them away,
//! [`rules`] says what a fault is in the words of nftables and tc. Where it is not, [`proxy`] stands between two ends of a
//! TCP connection, and [`owner`] tells whose it is. Both work on real packets or real connections: what the kernel does about a loss is what it does.

pub mod lab;
pub mod owner;
pub mod proxy;
pub mod rules;
