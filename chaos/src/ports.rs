//! Ports for the processes of a run.
//!
//! They lie below the range from which Linux takes the local ports of outgoing connections: a node that is killed must
//! find its port free when it starts again, and thousands of devices are connecting meanwhile.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::bail;
use rand::Rng as _;

const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
const ATTEMPTS: usize = 1000;

/// A loopback address on which nobody listens.
pub fn free() -> anyhow::Result<SocketAddr> {
    for _ in 0..ATTEMPTS {
        let port = rand::rng().random_range(FIRST..LAST);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {FIRST} and {LAST} in {ATTEMPTS} attempts")
}

/// `count` different ones.
pub fn several(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = Vec::with_capacity(count);
    while addresses.len() < count {
        let address = free()?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
