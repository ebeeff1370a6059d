//! Ends connections that no node holds any more, and finds those which a new leader has not been told of.
//!
//! What is proposed names the epoch, so that apply refuses it for a connection that has been replaced. Whoever finds the
//! reason finds it again for as long as the address is there (`addresses`), so nothing here is repeated.

use std::sync::Arc;
use std::time::Duration;

use drover_core::change::DeviceChange;
use drover_core::device::{Device, Presence};
use drover_core::ids::{DeviceId, GroupId, SessionEpoch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::admission::Gauge;
use super::device::DeviceContext;
use super::proposer::Connected;
use super::serve;
use super::shard::ShardMsg;
use crate::storage::{self, Storage, state};
use crate::wire::request::Failure;

/// Ends that are under way together: what one entry carries.
const TOGETHER_MAX: usize = 4096;
/// When a new leader looks for connections in the records. Nearly all have been announced to it by then.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Devices and modules that are read at a time.
const PAGE: usize = 1000;
/// Between two pages, so that a large shard is not read at the cost of its requests.
const PAGE_PAUSE: Duration = Duration::from_millis(5);

/// What proposes ends, for one shard.
#[derive(Debug)]
pub(super) struct Departed {
    gauge: Arc<Gauge>,
    /// The look through the records at the beginning of a term.
    look: Option<AbortOnDropHandle<()>>,
}

impl Default for Departed {
    fn default() -> Self {
        Self { gauge: Gauge::new(TOGETHER_MAX, usize::MAX), look: None }
    }
}

impl Departed {
    /// Commits that the connection has ended. If too many end at once it is left for the next time.
    pub(super) fn end(&self, context: &DeviceContext, device: &DeviceId, epoch: SessionEpoch) {
        let change = DeviceChange::Disconnect { epoch, will: None };
        let answer = context.propose_own(&self.gauge, device.clone(), change);
        let Some(answer) = answer else { return };
        let (shard, device) = (context.owner.clone(), device.clone());
        tokio::spawn(async move {
            // That it was applied is seen in the effects. If it was lost, the next reason comes.
            if let Ok(Err(Failure::Refused(_))) = answer.await {
                drop(shard.send_message(ShardMsg::NotLive(device, epoch)));
            }
        });
    }

    /// Tells the shard which devices the records say to be connected, once nodes have had the time to announce them.
    pub(super) fn look(&mut self, context: &Arc<DeviceContext>) {
        let context = Arc::clone(context);
        let look = tokio::spawn(async move {
            tokio::time::sleep(LOOK_AFTER).await;
            look(&context).await;
        });
        self.look = Some(AbortOnDropHandle::new(look));
    }

    pub(super) fn stop(&mut self) {
        self.look = None;
    }
}

async fn look(context: &DeviceContext) {
    let group = GroupId::Shard(context.shard);
    let mut after = None;
    loop {
        let connected = match page(&*context.storage, group, &mut after) {
            Ok(Some(connected)) => connected,
            Ok(None) => return,
            Err(error) => {
                warn!(shard = %context.shard, %error, "connections cannot be looked for");
                serve::unreadable(&context.group, error);
                return;
            }
        };
        let message = ShardMsg::Recorded(connected);
        if context.owner.send_message(message).is_err() {
            return;
        }
        tokio::time::sleep(PAGE_PAUSE).await;
    }
}

/// The connections of some devices and modules, after `after`. `None`: there are no more.
fn page(
    storage: &dyn Storage,
    group: GroupId,
    after: &mut Option<DeviceId>,
) -> Result<Option<Vec<Connected>>, storage::Error> {
    let identities = state::identities_after(storage, group, after.as_ref(), PAGE)?;
    let Some(last) = identities.last() else { return Ok(None) };
    *after = Some(last.id.clone());
    Ok(Some(identities.into_iter().filter_map(connected).collect()))
}

fn connected(device: Device) -> Option<Connected> {
    let Presence { connected_since, node, epoch, .. } = device.presence;
    connected_since?;
    Some(Connected { device: device.id, node: node?, epoch })
}
