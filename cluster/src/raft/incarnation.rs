//! Which replica of a group this node's records belong to, and how those of an earlier one go.
//!
//! Data is never removed because something is absent. It goes when the meta state says that the replica which it belongs
//! to is void: its incarnation lies below the one that is noted there. The new incarnation is noted in the batch that
//! removes the records, so that after a crash the node has all of the old replica or nothing of it.

use drover_core::ids::GroupId;
use tokio::sync::oneshot;

use super::log_record::{Mark, mark_key};
use crate::storage::{Batch, Error, Fence, Storage, Table, Write, keys};

/// The incarnation whose records are stored.
pub(super) fn stored(storage: &dyn Storage, group: GroupId) -> Result<u16, Error> {
    let Some(value) = storage.get(Table::Log, &mark_key(group, Mark::Incarnation))? else {
        return Ok(0);
    };
    value.as_ref().try_into().map(u16::from_be_bytes).map_err(|_| Error::Corrupt {
        what: format!("the incarnation of {group} has {} bytes", value.len()),
    })
}

/// Removes everything of the group; what is stored from now on is of this incarnation. On return it is durable. Nobody may
/// read or write the group meanwhile.
pub(super) async fn begin(
    storage: &dyn Storage,
    group: GroupId,
    incarnation: u16,
) -> Result<(), Error> {
    // Before the log that it guards: a crash between the two must not make the old replica look forgetful.
    storage.write_fence_now(group, Fence::default())?;
    let remove = |table| Write::DeleteRange { table, range: keys::all(group) };
    let mut writes: Vec<Write> = Table::ALL.into_iter().map(remove).collect();
    let (key, value) = (mark_key(group, Mark::Incarnation), incarnation.to_be_bytes());
    writes.push(Write::Put { table: Table::Log, key, value: value.to_vec().into() });
    storage.write(Batch { writes })?;
    let (done, synced) = oneshot::channel();
    storage.sync(Box::new(move |result| {
        // Nobody waits any more if the node stops: the next start finds out by itself.
        done.send(result).ok();
    }));
    synced.await.unwrap_or_else(|_| Err(Error::Io { what: "the store was closed".into() }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::simulated::{Behaviour, SimulatedDisk};
    use crate::storage::{Order, ScanLimit};

    #[tokio::test]
    async fn a_new_incarnation_has_nothing_of_the_former_and_its_neighbours_keep_theirs() {
        let behaviour = Behaviour { sync_us_max: 0, failing_syncs_per_mille: 0 };
        let storage = SimulatedDisk::new(1, behaviour).open();
        let group = |number| GroupId::from_number(number).expect("a legal group");
        for number in 3..=5 {
            for table in Table::ALL {
                let key = [keys::all(group(number)).start, vec![7]].concat();
                let write = Write::Put { table, key, value: Bytes::from_static(b"old") };
                storage.write(Batch { writes: vec![write] }).expect("a sound disk");
            }
        }
        assert_eq!(stored(&storage, group(4)), Ok(0));
        begin(&storage, group(4), 2).await.expect("a sound disk");
        assert_eq!(stored(&storage, group(4)), Ok(2));
        let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        for number in 3..=5 {
            for table in Table::ALL {
                let range = keys::all(group(number));
                let found = storage.scan(table, range, Order::Ascending, all).expect("readable");
                let expected = usize::from(number != 4 || table == Table::Log);
                assert_eq!(found.len(), expected, "{table:?} of {number}");
            }
        }
    }
}
