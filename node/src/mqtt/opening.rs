//! From a claim to the live connection of a device: credentials, proof, epoch.

use drover_cluster::Cluster;
use drover_cluster::Error;
use drover_cluster::actors::session::{DELIVERIES_MAX, Delivery, OpenSession, Session};
use drover_core::change::Refusal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::attempts::REFUSAL_PAUSE;
use super::connection::Shared;
use super::login::Login;
use super::revocation::{self, Revocation};
use super::session::{OpenError, Opened};
use super::status;
use crate::identity::{self, Presented, Registry};
use crate::peer::Peer;

/// A connection whose epoch is committed, with its way to and from the cluster.
pub(super) struct OpenedSession {
    pub(super) session: Session,
    pub(super) deliveries: mpsc::Receiver<Box<Delivery>>,
    pub(super) opened: Opened,
    /// `None` where the device's own record says it all.
    pub(super) revocation: Option<Revocation>,
}

/// How often a connect is tried when the identity changes between the check and the commit. Twice means that somebody
/// edits this very device all the time.
const ATTEMPTS_MAX: usize = 2;

/// Success: the epoch is durable on a majority, and the former connection is without effect. Who has failed too often is
/// refused later, or unheard.
pub(super) async fn open(
    shared: &Shared,
    peer: &Peer,
    login: &Login,
) -> Result<OpenedSession, OpenError> {
    let Shared { cluster, config, attempts, meters, .. } = shared;
    let address = peer.address;
    if !attempts.may_try(address, &login.device, Instant::now()) {
        meters.unheard.increment(1);
        sleep(REFUSAL_PAUSE).await;
        return Err(OpenError::Denied);
    }
    let opened = open_heard(cluster, &config.host_names, peer, login).await;
    match &opened {
        Ok(_) => attempts.succeeded(address, &login.device),
        Err(OpenError::Denied) => {
            sleep(attempts.failed(address, &login.device, Instant::now())).await;
        }
        Err(OpenError::Unavailable) => {}
    }
    opened
}

async fn open_heard(
    cluster: &Cluster,
    host_names: &[String],
    peer: &Peer,
    login: &Login,
) -> Result<OpenedSession, OpenError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match attempt(cluster, host_names, peer, login).await? {
            Ok(opened) => return Ok(opened),
            Err(Error::Refused(Refusal::CredentialsChanged)) if attempts < ATTEMPTS_MAX => {}
            Err(error) => {
                debug!(device = %login.device, %error, "connect refused");
                return Err(status::open_error(&error));
            }
        }
    }
}

async fn attempt(
    cluster: &Cluster,
    host_names: &[String],
    peer: &Peer,
    login: &Login,
) -> Result<Result<OpenedSession, Error>, OpenError> {
    let identity = match cluster.credentials(&login.device).await {
        Ok(identity) => identity,
        Err(error) => return Ok(Err(error)),
    };
    let meta = cluster.meta();
    let registry = Registry { identity: identity.as_ref(), meta: meta.as_deref(), host_names };
    let now_s = cluster.now().get() / 1000;
    let presented = Presented {
        token: &login.password,
        certificates: peer.certificates.as_deref().unwrap_or_default(),
    };
    let proof = identity::verify_device(&login.device, registry, presented, now_s);
    let proof = proof.map_err(|denied| {
        debug!(device = %login.device, %denied, "connect denied");
        OpenError::Denied
    })?;
    let (sender, deliveries) = mpsc::channel(DELIVERIES_MAX);
    let request = OpenSession {
        proven: proof.proven,
        clean_session: login.clean_session,
        deliveries: sender,
    };
    Ok(cluster.open_session(request).await.map(|session| {
        let opened = Opened {
            epoch: session.epoch(),
            session_present: session.session_present(),
            subscriptions: session.subscriptions().clone(),
            expires_s: proof.expires_s,
        };
        let revocation = proof.grant.map(|grant| revocation::of(grant, cluster.watch_meta()));
        OpenedSession { session, deliveries, opened, revocation }
    }))
}
