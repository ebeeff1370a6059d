//! How far a group has applied: one record, written together with what was applied.

use bytes::Bytes;
use drover_core::ids::GroupId;
use drover_proto::record;
use prost::Message as _;

use super::types::{
    LogId, StoredMembership, log_id_from_record, log_id_to_record, membership_from_record,
    membership_to_record,
};
use crate::storage::{Error, Record, Storage, Table, Write, keys, state};

/// The last applied entry and the last membership that was among the applied ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Position {
    pub(super) last: Option<LogId>,
    pub(super) membership: StoredMembership,
}

impl Position {
    pub(super) fn load(storage: &dyn Storage, group: GroupId) -> Result<Self, Error> {
        let Some(bytes) = state::applied(storage, group)? else { return Ok(Self::default()) };
        Self::decode(group, bytes)
    }

    /// Of the records of `Table::Group`; where nothing was applied there is none.
    pub(super) fn find(group: GroupId, records: &[Record]) -> Result<Self, Error> {
        let key = keys::applied(group);
        let found = records.iter().find(|(found, _)| *found == key);
        found.map_or(Ok(Self::default()), |(_, value)| Self::decode(group, value.clone()))
    }

    fn decode(group: GroupId, bytes: Bytes) -> Result<Self, Error> {
        let corrupt = |problem: String| Error::Corrupt {
            what: format!("how far {group} has applied cannot be decoded: {problem}"),
        };
        let applied = record::Applied::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
        let membership = membership_from_record(applied.membership.unwrap_or_default())
            .map_err(|error| corrupt(error.to_string()))?;
        let at = applied.membership_at.map(log_id_from_record);
        Ok(Self {
            last: applied.last.map(log_id_from_record),
            membership: StoredMembership::new(at, membership),
        })
    }

    pub(super) fn write(&self, group: GroupId) -> Write {
        Write::Put { table: Table::Group, key: keys::applied(group), value: self.encode() }
    }

    pub(super) fn encode(&self) -> Bytes {
        let applied = record::Applied {
            last: self.last.as_ref().map(log_id_to_record),
            membership_at: self.membership.log_id().as_ref().map(log_id_to_record),
            membership: Some(membership_to_record(self.membership.membership())),
        };
        applied.encode_to_vec().into()
    }
}
