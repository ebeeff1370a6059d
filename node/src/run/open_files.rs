//! How many files the system lets this process hold open, and how many of them devices may take.
//!
//! A socket is a file. Without a limit of our own that fits the system's, devices would take them all: the store could open
//! no file any more, which ends the node, and operators and the other nodes would be turned away.

use drover_cluster::storage;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use super::Error;
use crate::config::Limits;

/// What the store holds at the most, and the other nodes, operators and logs besides.
const RESERVED: u64 = storage::OPEN_FILES_MAX as u64 + 256;

/// Raises the limit as far as the system allows, and fits those of devices' connections to it.
pub(super) fn fit(limits: &mut Limits) -> Result<(), Error> {
    let files = raised();
    let Some((connections, handshakes)) = fitted(limits.connections, limits.handshakes, files)
    else {
        return Err(Error::Failed(format!(
            "this process may hold {files} files open, and needs more than {RESERVED} before the first device: raise the limit (ulimit -Hn, LimitNOFILE of systemd)"
        )));
    };
    if connections < limits.connections {
        warn!(
            files,
            connections,
            handshakes,
            "the system lets this process hold too few files open for limits.connections and limits.handshakes: fewer devices are taken; raise the limit (ulimit -Hn, LimitNOFILE of systemd)"
        );
    }
    (limits.connections, limits.handshakes) = (connections, handshakes);
    Ok(())
}

/// How many files this process may hold open now. By default it may hold fewer than it is allowed to ask for.
fn raised() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if let Err(error) = raised {
        info!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current.or(current).unwrap_or(u64::MAX)
}

/// Connections and handshakes of which each may be a file, in the same proportion as before. `None`: there is no room for any.
fn fitted(connections: u32, handshakes: u32, files: u64) -> Option<(u32, u32)> {
    let room = files.checked_sub(RESERVED)?;
    let wanted = u64::from(connections) + u64::from(handshakes);
    if wanted <= room {
        return Some((connections, handshakes));
    }
    let share = |of: u32| u32::try_from(u64::from(of) * room / wanted).ok().filter(|it| *it > 0);
    Some((share(connections)?, share(handshakes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_leave_files_for_everybody_else() {
        assert_eq!(fitted(50_000, 10_000, u64::MAX), Some((50_000, 10_000)));
        assert_eq!(fitted(50_000, 10_000, 60_000 + RESERVED), Some((50_000, 10_000)));
        let (connections, handshakes) = fitted(50_000, 10_000, 1_024).expect("room for some");
        assert!(u64::from(connections + handshakes) + RESERVED <= 1_024);
        assert_eq!(connections / handshakes, 5, "in proportion");
        assert_eq!(fitted(50_000, 10_000, RESERVED), None);
        assert_eq!(fitted(50_000, 10_000, 256), None);
    }

    #[test]
    fn a_process_may_hold_as_many_files_as_it_may_ask_for() {
        let files = raised();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert_eq!(files, maximum.unwrap_or(u64::MAX));
    }
}
