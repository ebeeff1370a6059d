//! What the builds of a cluster's nodes can do together.
//!
//! A build supports every feature level up to its own. The level that is active is part of the meta state: all members support it, and
//! it only rises. What a later level brings into a log or a record may be proposed only once it is active, so that nobody gets an
//! entry that it cannot read while nodes of two builds stand side by side. To announce what a node supports, and to raise the
//! level when all do, is the work of the layers above.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use crate::ids::NodeId;
use crate::meta::Meta;

/// A set of features, each with all of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureLevel(u16);

impl FeatureLevel {
    /// What every build supports, and a cluster whose state says nothing.
    pub const FIRST: Self = Self(1);
    /// What this build supports. It grows by one with a release that brings a [`Feature`].
    pub const LATEST: Self = Self(2);

    pub const fn new(level: u16) -> Self {
        Self(level)
    }

    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What came after the first level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// A cluster has a name besides its id.
    ClusterName,
}

impl Feature {
    /// From which level on it may be used. It never changes.
    pub const fn level(self) -> FeatureLevel {
        match self {
            Self::ClusterName => FeatureLevel(2),
        }
    }
}

static PRETENDED: OnceLock<FeatureLevel> = OnceLock::new();

/// What this process supports.
pub fn supported() -> FeatureLevel {
    PRETENDED.get().copied().unwrap_or(FeatureLevel::LATEST)
}

/// From here on this process is like one of an older build. The first call counts. Only programs of tests call it, so that two
/// builds can be seen side by side; `tests/tests/tidy.rs` fails if anything in the product names it.
pub fn pretend(level: FeatureLevel) {
    PRETENDED.get_or_init(|| level);
}

/// The part of the meta state that is about feature levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    pub active: FeatureLevel,
    /// An operator wants to be able to go back to the former build: the level does not rise.
    pub is_held: bool,
    /// What members have said. Who has said nothing supports the first one.
    pub supported: BTreeMap<NodeId, FeatureLevel>,
}

impl Default for Levels {
    fn default() -> Self {
        Self { active: FeatureLevel::FIRST, is_held: false, supported: BTreeMap::new() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LevelChange {
    /// From each node at its start, if it is not what is known of it.
    Announce {
        node: NodeId,
        supports: FeatureLevel,
    },
    Hold(bool),
    Raise {
        to: FeatureLevel,
    },
}

/// Why a change that has to do with levels was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LevelRefusal {
    #[error(
        "the node supports feature level {supports}, and the cluster is at {active}: run the build that the other nodes run"
    )]
    Outdated { supports: FeatureLevel, active: FeatureLevel },
    #[error(
        "the feature level cannot be {level}: it is held, or is that or higher already, or not all members support it"
    )]
    NotDue { level: FeatureLevel },
    #[error(
        "it needs feature level {needed}, and the cluster is at {active}: upgrade all nodes, then drover cluster upgrade finish"
    )]
    NotActive { needed: FeatureLevel, active: FeatureLevel },
    #[error("there is no member {node}")]
    NoMember { node: NodeId },
}

impl Meta {
    /// What a member supports, as far as it has said so.
    pub fn supported_by(&self, node: NodeId) -> FeatureLevel {
        self.levels.supported.get(&node).copied().unwrap_or(FeatureLevel::FIRST)
    }

    /// The level that should be active by now, if it is not.
    pub fn level_due(&self) -> Option<FeatureLevel> {
        let common = self.members.keys().map(|node| self.supported_by(*node)).min()?;
        (common > self.levels.active && !self.levels.is_held).then_some(common)
    }

    /// Whether a feature may be used. What is so once stays so.
    pub fn allows(&self, feature: Feature) -> Result<(), LevelRefusal> {
        let (needed, active) = (feature.level(), self.levels.active);
        if needed <= active { Ok(()) } else { Err(LevelRefusal::NotActive { needed, active }) }
    }

    /// Members of a newer build than this one that stay where they are. Devices should rather be there: an upgrade restarts the
    /// older one still.
    pub fn newer(&self, than: NodeId) -> impl Iterator<Item = NodeId> {
        let level = self.supported_by(than);
        let newer = self.levels.supported.iter().filter(move |(_, other)| **other > level);
        let departs = |node: &NodeId| self.membership.departures.contains_key(node);
        newer.map(|(node, _)| *node).filter(move |node| !departs(node))
    }
}

/// A node must support what is active.
pub(crate) fn check(meta: &Meta, supports: FeatureLevel) -> Result<(), LevelRefusal> {
    let active = meta.levels.active;
    if supports >= active { Ok(()) } else { Err(LevelRefusal::Outdated { supports, active }) }
}

/// Applies one change. A refusal changes nothing.
pub(crate) fn apply(meta: &mut Meta, change: LevelChange) -> Result<(), LevelRefusal> {
    match change {
        LevelChange::Announce { node, .. } if !meta.members.contains_key(&node) => {
            Err(LevelRefusal::NoMember { node })
        }
        LevelChange::Announce { node, supports } => {
            check(meta, supports)?;
            meta.levels.supported.insert(node, supports);
            Ok(())
        }
        LevelChange::Hold(is_held) => {
            meta.levels.is_held = is_held;
            Ok(())
        }
        LevelChange::Raise { to } => {
            let is_due = meta.level_due().is_some_and(|due| to <= due);
            if !is_due || to <= meta.levels.active {
                return Err(LevelRefusal::NotDue { level: to });
            }
            meta.levels.active = to;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Departure;
    use crate::testing::cluster;

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    fn announce(meta: &mut Meta, number: u32, level: u16) -> Result<(), LevelRefusal> {
        let supports = FeatureLevel::new(level);
        apply(meta, LevelChange::Announce { node: node(number), supports })
    }

    fn raise(meta: &mut Meta, level: u16) -> Result<(), LevelRefusal> {
        apply(meta, LevelChange::Raise { to: FeatureLevel::new(level) })
    }

    #[test]
    fn the_level_rises_to_what_all_members_support_and_no_further() {
        let mut meta = cluster(3);
        assert_eq!(meta.level_due(), None, "nobody has said anything");
        announce(&mut meta, 1, 3).expect("a member");
        announce(&mut meta, 2, 4).expect("a member");
        let not_due = Err(LevelRefusal::NotDue { level: FeatureLevel::new(2) });
        assert_eq!(raise(&mut meta, 2), not_due, "the third supports the first only");
        announce(&mut meta, 3, 5).expect("a member");
        assert_eq!(meta.level_due(), Some(FeatureLevel::new(3)));
        raise(&mut meta, 4).expect_err("the first node does not support it");
        raise(&mut meta, 3).expect("all support it");
        assert_eq!(meta.level_due(), None);
        assert_eq!(raise(&mut meta, 2), not_due, "it never falls");
    }

    #[test]
    fn a_level_that_is_held_stays_until_it_is_released() {
        let mut meta = cluster(3);
        apply(&mut meta, LevelChange::Hold(true)).expect("it is possible at any time");
        for number in 1..=3 {
            announce(&mut meta, number, 2).expect("a member");
        }
        assert_eq!(meta.level_due(), None);
        raise(&mut meta, 2).expect_err("it is held");
        announce(&mut meta, 2, 1).expect("the former build can still come back");
        apply(&mut meta, LevelChange::Hold(false)).expect("it is possible at any time");
        raise(&mut meta, 2).expect_err("the second node went back");
        announce(&mut meta, 2, 2).expect("a member");
        raise(&mut meta, 2).expect("all support it");
    }

    #[test]
    fn a_node_that_does_not_support_what_is_active_is_refused() {
        let mut meta = cluster(1);
        announce(&mut meta, 1, 2).expect("a member");
        raise(&mut meta, 2).expect("all support it");
        let (supports, active) = (FeatureLevel::FIRST, FeatureLevel::new(2));
        let outdated = Err(LevelRefusal::Outdated { supports, active });
        assert_eq!(announce(&mut meta, 1, 1), outdated);
        announce(&mut meta, 2, 2).expect_err("it is no member");
    }

    #[test]
    fn devices_should_rather_be_at_a_newer_node_that_stays() {
        let mut meta = cluster(3);
        announce(&mut meta, 2, 2).expect("a member");
        let newer = |meta: &Meta, than| meta.newer(node(than)).collect::<Vec<_>>();
        assert_eq!(newer(&meta, 1), [node(2)]);
        assert_eq!(newer(&meta, 2), []);
        meta.membership.departures.insert(node(2), Departure::Restarting);
        assert_eq!(newer(&meta, 1), [], "it takes no sessions");
    }
}
