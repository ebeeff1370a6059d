//! Whose connection it is: which of a run's nodes holds the other end of one that came over loopback.
//!
//! All nodes of a run without namespaces have the same address, and what they say is encrypted. The kernel knows: the table of
//! sockets names an inode, and a process that has it open is the one. Anybody may look at processes of their own.

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;

/// Marks a node's process in its environment.
pub const MARK: &str = "CHAOS_NODE";

/// What [`MARK`] must be for node `node` of run `run`.
pub fn mark(run: u32, node: usize) -> String {
    format!("{run}-{node}")
}

/// The node of run `run` that has connected from `client`.
pub fn node_at(run: u32, client: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(client) = client else { return None };
    let socket = format!("socket:[{}]", inode(&fs::read_to_string("/proc/net/tcp").ok()?, client)?);
    let mark = format!("{MARK}={run}-");
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    processes.map(|process| process.path()).find_map(|process| {
        // Processes of others cannot be read, and are none of ours.
        let environment = fs::read(process.join("environ")).ok()?;
        let mut words = environment.split(|byte| *byte == 0);
        let number = words.find_map(|word| word.strip_prefix(mark.as_bytes()))?;
        let node = std::str::from_utf8(number).ok()?.parse().ok()?;
        holds(&process, &socket).then_some(node)
    })
}

fn holds(process: &Path, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.any(|target| target.as_os_str() == socket)
}

/// The inode of the socket whose own end is `local`, from what `/proc/net/tcp` says.
fn inode(table: &str, local: SocketAddrV4) -> Option<&str> {
    // The kernel writes addresses as numbers of the machine's own byte order.
    let address = u32::from_ne_bytes(local.ip().octets());
    let local = format!("{address:08X}:{:04X}", local.port());
    let row = table.lines().find(|row| row.split_whitespace().nth(1) == Some(&local))?;
    row.split_whitespace().nth(9)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio::process::Command;

    use super::*;

    #[test]
    fn the_row_of_the_own_end_names_the_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000  0  0 111 1 0 20 4 30 10 -1\n   \
                     1: 0100007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  0  0 222 1 0 20 4 30 10 -1\n";
        let local = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        if cfg!(target_endian = "little") {
            assert_eq!(inode(table, local(0xC001)), Some("222"));
        }
        assert_eq!(inode(table, local(7)), None);
    }

    #[tokio::test]
    async fn a_connection_belongs_to_the_node_whose_process_holds_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let run = std::process::id();
        let talk = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo up >&3; read line <&3");
        let mut command = Command::new("bash");
        command.args(["-c", &talk]).env(MARK, mark(run, 2)).kill_on_drop(true);
        let _child = command.spawn().unwrap();
        let (mut stream, client) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        assert_eq!(node_at(run, client), Some(2));
        assert_eq!(node_at(run + 1, client), None, "it is a node of another run");
    }
}
