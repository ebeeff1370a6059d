//! Records of groups, and what a cluster is restored from: protobuf to typed requests and back.

use bytes::Bytes;
use drover_cluster::actors::backups::{Chunk, Restoration, Table, table_from_number, table_number};
use drover_proto::admin::{BeginRestoreRequest, GroupRecords};

use super::cluster;
use crate::grpc::status::Invalid;

/// It stands in the meta state until the restore has ended.
const BACKUP_ID_BYTES_MAX: usize = 64;

pub(crate) fn records(chunk: Chunk) -> GroupRecords {
    let table = table_number(chunk.table).into();
    let records = chunk.records.into_iter();
    let (keys, values) = records.map(|(key, value)| (Vec::from(key), Vec::from(value))).unzip();
    GroupRecords { table, keys, values }
}

/// Whether the records are of the group that they are for is checked where they are taken in.
pub(crate) fn chunk(records: GroupRecords) -> Result<Chunk, Invalid> {
    let table = table_from_number(records.table).filter(|table| Table::APPLIED.contains(table));
    let table = table.ok_or_else(|| Invalid::new("records.table", "no group has such a table"))?;
    if records.keys.len() != records.values.len() {
        return Err(Invalid::new("records.values", "there is not one for each key"));
    }
    let [keys, values] =
        [records.keys, records.values].map(|column| column.into_iter().map(Bytes::from));
    Ok(Chunk { table, records: keys.zip(values).collect() })
}

pub(crate) fn restoration(request: BeginRestoreRequest) -> Result<Restoration, Invalid> {
    if request.backup.is_empty() || request.backup.len() > BACKUP_ID_BYTES_MAX {
        return Err(Invalid::new("backup", "name the backup"));
    }
    let factor = u8::try_from(request.replication_factor)
        .map_err(|_| Invalid::new("replication_factor", "1, 3 or 5 replicas are possible"))?;
    Ok(Restoration {
        backup: request.backup,
        members: cluster::members(request.members)?,
        replication_factor: (factor > 0).then_some(factor),
        meta: request.meta.into_iter().map(chunk).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_message_and_those_of_no_snapshot_are_refused() {
        let records_of = |table| GroupRecords { table, keys: vec![vec![1]], values: vec![vec![2]] };
        for table in 1..=6 {
            let chunk = chunk(records_of(table)).expect("a table of snapshots");
            assert_eq!(records(chunk), records_of(table));
        }
        assert!(chunk(records_of(0)).is_err(), "the log");
        assert!(chunk(records_of(7)).is_err(), "nothing");
        let uneven = GroupRecords { table: 1, keys: vec![vec![1]], values: Vec::new() };
        assert!(chunk(uneven).is_err());
    }
}
