//! Nodes in one process over loopback: real sockets and real Raft, on simulated disks.

mod cluster;
mod groups;
mod peers;
