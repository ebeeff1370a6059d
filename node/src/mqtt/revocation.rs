//! The end of a right that does not stand in the device's own record: of a policy, or of a certificate authority.
//!
//! A node learns of it with the meta state, within moments of the change; one that is cut off, when it is back.

use std::pin::Pin;
use std::sync::Arc;

use drover_core::meta::Meta;
use tokio::sync::watch;

use crate::identity::Grant;

/// Completes when the right has ended.
pub(super) type Revocation = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The state that is current at the first poll counts: a change between the check of a proof and now is not missed.
pub(super) fn of(grant: Grant, mut meta: watch::Receiver<Option<Arc<Meta>>>) -> Revocation {
    Box::pin(async move {
        let is_revoked =
            |meta: &Option<Arc<Meta>>| meta.as_ref().is_none_or(|meta| !grant.holds(meta));
        if meta.wait_for(is_revoked).await.is_err() {
            // The node is stopping, which ends its connections for that reason.
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use drover_core::access::Permission;
    use drover_core::device::Key;
    use drover_core::ids::ShardCount;
    use drover_core::level::Levels;
    use drover_core::membership::Membership;
    use drover_core::meta::Policy;
    use futures::FutureExt;

    use super::*;

    fn key(letter: u8) -> Key {
        Key::new(vec![letter; 32]).expect("32 bytes")
    }

    /// With one policy that may connect devices.
    fn meta(primary: u8, secondary: u8) -> Arc<Meta> {
        let permissions = BTreeSet::from([Permission::DeviceConnect]);
        let policy = Policy { primary: key(primary), secondary: key(secondary), permissions };
        Arc::new(Meta {
            cluster_id: "test".into(),
            name: String::new(),
            shard_count: ShardCount::new(1).expect("1 is a legal count"),
            replication_factor: 1,
            members: BTreeMap::new(),
            placement: BTreeMap::new(),
            policies: BTreeMap::from([("device".to_owned(), policy)]),
            authorities: BTreeMap::new(),
            membership: Membership::default(),
            levels: Levels::default(),
            restoring: None,
            version: 1,
        })
    }

    fn by(letter: u8) -> Grant {
        Grant::Policy { name: "device".to_owned(), key: key(letter) }
    }

    #[test]
    fn a_right_ends_with_the_key_that_it_was_signed_with_and_not_with_the_other_one() {
        let (change, seen) = watch::channel(Some(meta(1, 2)));
        let mut revocation = of(by(1), seen);
        assert_eq!((&mut revocation).now_or_never(), None);
        change.send_replace(Some(meta(3, 1)));
        assert_eq!((&mut revocation).now_or_never(), None, "it is the secondary one now");
        change.send_replace(Some(meta(3, 4)));
        assert_eq!((&mut revocation).now_or_never(), Some(()));
    }

    #[test]
    fn a_right_that_ended_before_anybody_waited_is_found_ended() {
        let (change, seen) = watch::channel(Some(meta(1, 2)));
        let revocation = of(by(1), seen);
        change.send_replace(Some(meta(3, 4)));
        assert_eq!(revocation.now_or_never(), Some(()));
    }

    #[test]
    fn the_end_of_the_node_is_no_revocation() {
        let (change, seen) = watch::channel(Some(meta(1, 2)));
        let revocation = of(by(1), seen);
        drop(change);
        assert_eq!(revocation.now_or_never(), None);
    }
}
