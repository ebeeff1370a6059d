//! Accepting sockets until told to stop, also while the system has none to give.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The wait after a failed accept, doubled each time up to the second figure. Without it a node that has run out of file
/// descriptors would spin.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Hands each socket to `admit`, which must not wait, until `stop`.
pub(crate) async fn accept_each(
    listener: &TcpListener,
    stop: &CancellationToken,
    mut admit: impl FnMut(TcpStream, SocketAddr),
) {
    let mut back_off = BACK_OFF_MIN;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, address)) => {
                back_off = BACK_OFF_MIN;
                // An answer of a few bytes should not wait for more to come.
                match socket.set_nodelay(true) {
                    Ok(()) => admit(socket, address),
                    Err(error) => debug!(%address, %error, "the socket was gone at once"),
                }
            }
            Err(error) => {
                warn!(%error, wait = ?back_off, "a connection could not be accepted");
                sleep(back_off).await;
                back_off = BACK_OFF_MAX.min(back_off * 2);
            }
        }
    }
}
