//! What the whole cluster agrees on: members, where shards live, who may do what. The state of group 0.
//!
//! [`apply`] is total and deterministic like that of a shard. Where shards should live is planned in `placement`.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::Permission;
use crate::authority::{self, Authorities, AuthorityChange};
use crate::device::Key;
use crate::ids::{LogTime, NodeId, ShardCount};
use crate::level::{self, Feature, LevelChange, LevelRefusal, Levels};
use crate::membership::{self, Membership, MembershipChange, MembershipRefusal};
use crate::placement::Placement;

/// How many access policies a cluster may have: all of them are read for each token that is checked.
pub const POLICIES_MAX: usize = 64;
/// The longest name of a policy, an authority or the cluster, in characters.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// The state of the meta group. `None` until the cluster is initialized.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    pub cluster_id: String,
    /// For people; empty until somebody gives it one.
    pub name: String,
    pub shard_count: ShardCount,
    pub replication_factor: u8,
    pub members: BTreeMap<NodeId, Member>,
    /// The replicas of each shard; the first is where the leader should be.
    pub placement: Placement,
    pub policies: BTreeMap<String, Policy>,
    pub authorities: Authorities,
    pub membership: Membership,
    pub levels: Levels,
    /// The backup that the shards are being filled from. Until they all are, nobody is served.
    pub restoring: Option<String>,
    /// Grows by one with each accepted change.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// host:port of the peer listener.
    pub peer_address: String,
    /// host:port where clients reach the gRPC API.
    pub admin_address: String,
    pub zone: String,
}

/// A shared access policy: either key signs tokens with these permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub primary: Key,
    pub secondary: Key,
    pub permissions: BTreeSet<Permission>,
}

/// What Raft replicates in the meta group.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaChange {
    Initialize(Box<Meta>),
    /// With a version it is refused unless the state has it: part of the policy was taken from what was read before.
    PutPolicy {
        name: String,
        policy: Policy,
        expected_version: Option<u64>,
    },
    DeletePolicy {
        name: String,
    },
    Authority {
        name: String,
        change: AuthorityChange,
    },
    /// Place these shards anew; others stay where they are. Refused unless the state has the version that the plan was
    /// made from.
    Place {
        expected_version: u64,
        placement: Placement,
    },
    Membership(MembershipChange),
    Level(LevelChange),
    /// Gives the cluster a name for people, or takes it with an empty one.
    Rename {
        name: String,
    },
    /// Every shard has what the backup holds of it: the cluster serves from now on. A repeat changes nothing.
    EndRestore,
}

impl MetaChange {
    /// What must be allowed before it may be proposed: older builds cannot read it.
    pub fn feature(&self) -> Option<Feature> {
        match self {
            Self::Rename { .. } => Some(Feature::ClusterName),
            Self::Initialize(_)
            | Self::PutPolicy { .. }
            | Self::DeletePolicy { .. }
            | Self::Authority { .. }
            | Self::Place { .. }
            | Self::Membership(_)
            | Self::Level(_)
            | Self::EndRestore => None,
        }
    }
}

/// One log entry of the meta group.
#[derive(Debug, Clone, PartialEq)]
pub struct MetaEntry {
    pub at: LogTime,
    pub change: MetaChange,
}

/// Why the meta group refused a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaRefusal {
    #[error("the cluster {cluster_id} exists already: it is initialized once")]
    AlreadyInitialized { cluster_id: String },
    #[error("there is no cluster yet: run drover cluster init at one node")]
    NotInitialized,
    #[error("the state has version {current}, not {expected}: read it again, then decide")]
    VersionMismatch { expected: u64, current: u64 },
    #[error("there is no policy {name}")]
    PolicyNotFound { name: String },
    #[error("the policy name {name:?} is not valid: use 1 to 64 letters, digits, - . _")]
    InvalidPolicyName { name: String },
    #[error("there are {limit} policies already: delete one first")]
    TooManyPolicies { limit: usize },
    #[error("policy {name} is the last one that may administer the cluster: make another first")]
    LastAdministrator { name: String },
    #[error("there is no authority {name}")]
    AuthorityNotFound { name: String },
    #[error("the name, or the certificate, is that of the authority {name} already")]
    AuthorityAlreadyExists { name: String },
    #[error("the authority name {name:?} is not valid: use 1 to 64 letters, digits, - . _")]
    InvalidAuthorityName { name: String },
    #[error("there are {limit} authorities already: delete one first")]
    TooManyAuthorities { limit: usize },
    #[error("the code of {name} was replaced meanwhile: sign a certificate with the new one")]
    AuthorityCodeReplaced { name: String },
    #[error("the authority {name} is proven already")]
    AuthorityIsProven { name: String },
    #[error(transparent)]
    Membership(#[from] MembershipRefusal),
    #[error(transparent)]
    Level(#[from] LevelRefusal),
    #[error("the cluster name is too long: use {limit} characters at most, none of them a control")]
    InvalidClusterName { limit: usize },
}

/// Applies one change. The answer is the new version; a refusal changes nothing.
pub fn apply(
    state: &mut Option<Meta>,
    change: &MetaChange,
    at: LogTime,
) -> Result<u64, MetaRefusal> {
    let meta = match (change, &mut *state) {
        (MetaChange::Initialize(_), Some(meta)) => {
            return Err(MetaRefusal::AlreadyInitialized { cluster_id: meta.cluster_id.clone() });
        }
        (MetaChange::Initialize(initial), None) => state.insert(Meta::clone(initial)),
        (_, None) => return Err(MetaRefusal::NotInitialized),
        (change, Some(meta)) => {
            meta.apply(change, at)?;
            meta
        }
    };
    meta.version = meta.version.wrapping_add(1);
    Ok(meta.version)
}

impl Meta {
    fn apply(&mut self, change: &MetaChange, at: LogTime) -> Result<(), MetaRefusal> {
        match change {
            // Answered by `apply`.
            MetaChange::Initialize(_) => Ok(()),
            MetaChange::PutPolicy { name, policy, expected_version } => {
                expected_version.map_or(Ok(()), |expected| self.check_version(expected))?;
                self.put_policy(name, policy)
            }
            MetaChange::DeletePolicy { name } => self.delete_policy(name),
            MetaChange::Authority { name, change } => {
                authority::apply(&mut self.authorities, name, change)
            }
            MetaChange::Place { expected_version, placement } => {
                self.place(*expected_version, placement)
            }
            MetaChange::Membership(change) => {
                if let MembershipChange::PlanMoves { expected_version, .. } = change {
                    self.check_version(*expected_version)?;
                }
                if let MembershipChange::Join(joining) = change {
                    level::check(self, joining.supports)?;
                }
                Ok(membership::apply(self, change, at)?)
            }
            MetaChange::Level(change) => Ok(level::apply(self, *change)?),
            MetaChange::Rename { name } => self.rename(name),
            MetaChange::EndRestore => {
                self.restoring = None;
                Ok(())
            }
        }
    }

    fn put_policy(&mut self, name: &str, policy: &Policy) -> Result<(), MetaRefusal> {
        check_policy_name(name)?;
        if !self.policies.contains_key(name) && self.policies.len() >= POLICIES_MAX {
            return Err(MetaRefusal::TooManyPolicies { limit: POLICIES_MAX });
        }
        if !policy.administers() {
            self.check_administered_without(name)?;
        }
        self.policies.insert(name.to_owned(), policy.clone());
        Ok(())
    }

    fn delete_policy(&mut self, name: &str) -> Result<(), MetaRefusal> {
        if !self.policies.contains_key(name) {
            return Err(MetaRefusal::PolicyNotFound { name: name.to_owned() });
        }
        self.check_administered_without(name)?;
        self.policies.remove(name);
        Ok(())
    }

    /// Refuses to take the right to administer from the last policy that has it: nobody could give it back.
    fn check_administered_without(&self, name: &str) -> Result<(), MetaRefusal> {
        let had = self.policies.get(name).is_some_and(Policy::administers);
        let others = self.policies.iter().filter(|(other, _)| *other != name);
        if had && !others.map(|(_, policy)| policy).any(Policy::administers) {
            return Err(MetaRefusal::LastAdministrator { name: name.to_owned() });
        }
        Ok(())
    }

    fn rename(&mut self, name: &str) -> Result<(), MetaRefusal> {
        self.allows(Feature::ClusterName)?;
        if name.chars().count() > NAME_CHARACTERS_MAX || name.chars().any(char::is_control) {
            return Err(MetaRefusal::InvalidClusterName { limit: NAME_CHARACTERS_MAX });
        }
        name.clone_into(&mut self.name);
        Ok(())
    }

    fn check_version(&self, expected: u64) -> Result<(), MetaRefusal> {
        if expected == self.version {
            return Ok(());
        }
        Err(MetaRefusal::VersionMismatch { expected, current: self.version })
    }

    fn place(&mut self, expected: u64, placement: &Placement) -> Result<(), MetaRefusal> {
        self.check_version(expected)?;
        self.placement.extend(placement.iter().map(|(shard, nodes)| (*shard, nodes.clone())));
        Ok(())
    }
}

impl Policy {
    fn administers(&self) -> bool {
        self.permissions.contains(&Permission::ClusterAdmin)
    }
}

fn check_policy_name(name: &str) -> Result<(), MetaRefusal> {
    if is_legal_name(name) {
        Ok(())
    } else {
        Err(MetaRefusal::InvalidPolicyName { name: name.to_owned() })
    }
}

/// What a policy or an authority may be called.
pub(crate) fn is_legal_name(name: &str) -> bool {
    (1..=NAME_CHARACTERS_MAX).contains(&name.len())
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "-._".contains(character))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardId;
    use crate::testing::key;

    const AT: LogTime = LogTime::new(1);

    fn policy(permission: Permission) -> Policy {
        Policy { primary: key(1), secondary: key(2), permissions: BTreeSet::from([permission]) }
    }

    fn initial() -> Meta {
        Meta {
            cluster_id: "c1".to_owned(),
            name: String::new(),
            shard_count: ShardCount::new(4).expect("a legal count"),
            replication_factor: 3,
            members: BTreeMap::new(),
            placement: Placement::new(),
            authorities: Authorities::new(),
            membership: Membership::default(),
            levels: Levels::default(),
            restoring: None,
            policies: BTreeMap::from([("owner".to_owned(), policy(Permission::ClusterAdmin))]),
            version: 0,
        }
    }

    fn initialized() -> Option<Meta> {
        let mut state = None;
        apply(&mut state, &MetaChange::Initialize(Box::new(initial())), AT)
            .expect("there is none yet");
        state
    }

    fn put(
        state: &mut Option<Meta>,
        name: &str,
        permission: Permission,
    ) -> Result<u64, MetaRefusal> {
        let (name, policy) = (name.to_owned(), policy(permission));
        let change = MetaChange::PutPolicy { name, policy, expected_version: None };
        apply(state, &change, AT)
    }

    fn delete(state: &mut Option<Meta>, name: &str) -> Result<u64, MetaRefusal> {
        apply(state, &MetaChange::DeletePolicy { name: name.to_owned() }, AT)
    }

    #[test]
    fn a_cluster_is_initialized_once() {
        let mut state = None;
        assert_eq!(delete(&mut state, "owner"), Err(MetaRefusal::NotInitialized));
        let initialize = MetaChange::Initialize(Box::new(initial()));
        assert_eq!(apply(&mut state, &initialize, AT), Ok(1));
        let refusal = MetaRefusal::AlreadyInitialized { cluster_id: "c1".to_owned() };
        assert_eq!(apply(&mut state, &initialize, AT), Err(refusal));
    }

    #[test]
    fn a_restored_cluster_is_restored_until_that_is_said_to_be_over() {
        let restoring = Meta { restoring: Some("b1".to_owned()), ..initial() };
        let mut state = None;
        apply(&mut state, &MetaChange::Initialize(Box::new(restoring)), AT)
            .expect("no cluster yet");
        put(&mut state, "reader", Permission::RegistryRead).expect("legal");
        assert_eq!(state.as_ref().and_then(|meta| meta.restoring.as_deref()), Some("b1"));
        for _ in 0..2 {
            apply(&mut state, &MetaChange::EndRestore, AT).expect("a repeat is no mistake");
            assert_eq!(state.as_ref().and_then(|meta| meta.restoring.clone()), None);
        }
    }

    #[test]
    fn the_last_administrator_stays() {
        let mut state = initialized();
        let refusal = Err(MetaRefusal::LastAdministrator { name: "owner".to_owned() });
        assert_eq!(delete(&mut state, "owner"), refusal);
        assert_eq!(put(&mut state, "owner", Permission::RegistryRead), refusal);
        put(&mut state, "second", Permission::ClusterAdmin).expect("legal");
        assert_eq!(delete(&mut state, "owner"), Ok(3));
    }

    #[test]
    fn a_refusal_does_not_move_the_version() {
        let mut state = initialized();
        let before = state.clone();
        delete(&mut state, "nobody").expect_err("there is no such policy");
        put(&mut state, "a b", Permission::RegistryRead).expect_err("a space");
        put(&mut state, &"a".repeat(65), Permission::RegistryRead).expect_err("too long");
        assert_eq!(state, before);
    }

    #[test]
    fn there_are_64_policies_at_most_and_each_of_them_can_be_replaced() {
        let mut state = initialized();
        for n in 1..64 {
            put(&mut state, &format!("p{n}"), Permission::RegistryRead).expect("room is left");
        }
        let refusal = Err(MetaRefusal::TooManyPolicies { limit: 64 });
        assert_eq!(put(&mut state, "late", Permission::RegistryRead), refusal);
        put(&mut state, "p7", Permission::RegistryWrite).expect("it is there already");
    }

    #[test]
    fn a_policy_that_keeps_keys_of_an_older_state_is_refused() {
        let mut state = initialized();
        put(&mut state, "reader", Permission::RegistryRead).expect("legal");
        let before = state.clone();
        let stale = |expected| MetaChange::PutPolicy {
            name: "reader".to_owned(),
            policy: policy(Permission::RegistryWrite),
            expected_version: Some(expected),
        };
        let refusal = MetaRefusal::VersionMismatch { expected: 1, current: 2 };
        assert_eq!(apply(&mut state, &stale(1), AT), Err(refusal));
        assert_eq!(state, before);
        assert_eq!(apply(&mut state, &stale(2), AT), Ok(3));
    }

    #[test]
    fn a_cluster_has_a_name_only_from_the_level_on_that_brings_names() {
        let mut state = initialized();
        let rename = |name: &str| MetaChange::Rename { name: name.to_owned() };
        let before = state.clone();
        let refused = apply(&mut state, &rename("North"), AT).expect_err("the first level");
        assert!(refused.to_string().contains("upgrade all nodes"), "{refused}");
        assert_eq!(state, before);
        state.as_mut().expect("a cluster").levels.active = Feature::ClusterName.level();
        apply(&mut state, &rename("Plant North"), AT).expect("it is active");
        assert_eq!(state.as_ref().expect("a cluster").name, "Plant North");
        apply(&mut state, &rename("a\u{7}"), AT).expect_err("a control character");
        apply(&mut state, &rename(&"ä".repeat(65)), AT).expect_err("too long");
        apply(&mut state, &rename(&"ä".repeat(64)), AT).expect("64 characters");
    }

    #[test]
    fn a_plan_from_an_older_state_is_refused() {
        let mut state = initialized();
        let shard = ShardId::new(1, ShardCount::new(4).expect("legal")).expect("legal");
        let placement = Placement::from([(shard, vec![NodeId::new(1, 0)])]);
        let place =
            |expected_version| MetaChange::Place { expected_version, placement: placement.clone() };
        assert_eq!(apply(&mut state, &place(1), AT), Ok(2));
        let refusal = MetaRefusal::VersionMismatch { expected: 1, current: 2 };
        assert_eq!(apply(&mut state, &place(1), AT), Err(refusal));
    }
}
