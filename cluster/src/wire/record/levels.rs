//! What the nodes' builds can do together: part of the meta state, and what changes it.

use drover_core::ids::NodeId;
use drover_core::level::{FeatureLevel, LevelChange, Levels};
use drover_proto::record::{self, level_change::Kind};

use super::required;
use crate::wire::Invalid;

pub(super) fn to_record(levels: &Levels) -> record::FeatureLevels {
    let supported = levels.supported.iter();
    record::FeatureLevels {
        active: levels.active.get().into(),
        held: levels.is_held,
        supported: supported.map(|(node, level)| node_level(*node, *level)).collect(),
    }
}

pub(super) fn from_record(levels: record::FeatureLevels) -> Result<Levels, Invalid> {
    let supported = levels.supported.into_iter().map(node_level_from_record);
    Ok(Levels {
        active: from_number(levels.active)?,
        is_held: levels.held,
        supported: supported.collect::<Result<_, _>>()?,
    })
}

pub(super) fn change_to_record(change: LevelChange) -> record::LevelChange {
    let kind = match change {
        LevelChange::Announce { node, supports } => Kind::Announce(node_level(node, supports)),
        LevelChange::Hold(is_held) => Kind::Hold(is_held),
        LevelChange::Raise { to } => Kind::Raise(to.get().into()),
    };
    record::LevelChange { kind: Some(kind) }
}

pub(super) fn change_from_record(change: record::LevelChange) -> Result<LevelChange, Invalid> {
    Ok(match required("level_change.kind", change.kind)? {
        Kind::Announce(announced) => {
            let (node, supports) = node_level_from_record(announced)?;
            LevelChange::Announce { node, supports }
        }
        Kind::Hold(is_held) => LevelChange::Hold(is_held),
        Kind::Raise(to) => LevelChange::Raise { to: from_number(to)? },
    })
}

/// Who says nothing means the first level.
pub(super) fn from_number(level: u32) -> Result<FeatureLevel, Invalid> {
    let level = required("feature_level", u16::try_from(level).ok())?;
    Ok(FeatureLevel::new(level).max(FeatureLevel::FIRST))
}

fn node_level(node: NodeId, level: FeatureLevel) -> record::NodeLevel {
    record::NodeLevel { node: node.to_u64(), level: level.get().into() }
}

fn node_level_from_record(record: record::NodeLevel) -> Result<(NodeId, FeatureLevel), Invalid> {
    Ok((NodeId::from_u64(record.node), from_number(record.level)?))
}
