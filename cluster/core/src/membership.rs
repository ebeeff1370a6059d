//! Who belongs to the cluster and who is leaving it, and the replicas that are on their way from one node to another.
//!
//! Part of the meta state. What should move next is planned in [`moves`](crate::moves); carrying a move out is the mover's
//! work, which changes the voters of the shard's group first and says so here afterwards. Secrets are compared by
//! whoever takes a request in: here a token is a name with an end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

use crate::ids::{GroupId, LogTime, NodeId, ReplicaId, ShardId};
use crate::level::FeatureLevel;
use crate::meta::{Member, Meta};
use crate::mutants::{Mutation, is_planted};

/// The largest cluster: each node keeps a connection to every other, and all of them follow the meta group.
pub const MEMBERS_MAX: usize = 1_000;
/// Tokens that may be known at one time, used and expired ones included.
pub const TOKENS_MAX: usize = 256;
/// A token is remembered for so long after its end, so that whoever comes late is told why.
const TOKEN_REMEMBERED_MS: u64 = 24 * 60 * 60 * 1_000;
/// A damaged replica is rebuilt only if so many stand in the placement: without it the others are still a majority.
const REPLICAS_TO_REBUILD_MIN: usize = 3;

/// The part of the meta state that is about nodes which come and go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Membership {
    /// Made with the first token.
    pub signer: Option<Signer>,
    pub tokens: BTreeMap<String, JoinToken>,
    /// Members that are to be emptied.
    pub departures: BTreeMap<NodeId, Departure>,
    /// Ids that were members. None of them is one again (I-35).
    pub removed: BTreeSet<NodeId>,
    pub moves: BTreeMap<ShardId, Move>,
    /// No move begins, and those under way wait.
    pub is_paused: bool,
    /// How many replicas of a shard a node has had that it must not have any more. Nothing is 0.
    pub retired: BTreeMap<(ShardId, NodeId), u16>,
}

/// Signs the certificates of nodes that join by a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// X.509, DER.
    pub certificate: Bytes,
    pub key: PrivateKey,
}

/// A private key, PKCS #8. It never shows itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub Bytes);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// Lets one node join, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the secret that the token's holder knows.
    pub digest: Bytes,
    pub expires: LogTime,
    pub used: Option<Joined>,
}

/// Who has used a token. The holder of the same key may ask again: its answer may have been lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    pub node: NodeId,
    pub key_digest: Bytes,
}

/// What a node asks for that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    pub token: String,
    /// `None`: the next free one.
    pub number: Option<u32>,
    /// SHA-256 of its public key.
    pub key_digest: Bytes,
    pub member: Member,
    pub supports: FeatureLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It gives away what it leads and holds, and may come back.
    Drained,
    /// The same without its help, for it may be dead; then it is a member no more.
    Removed,
    /// It gives away what it leads, and its sessions, and keeps its replicas: it will be back soon.
    Restarting,
}

/// A replica on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The version of the state in which it began: tells it from other moves of the shard.
    pub id: u64,
    /// The replica that goes; `None` if the shard has too few. The same as `to`: a damaged replica is rebuilt.
    pub from: Option<NodeId>,
    pub to: NodeId,
    pub is_cancelled: bool,
    /// `None`: it waits until both nodes are free.
    pub began: Option<LogTime>,
}

/// A move that should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMove {
    pub shard: ShardId,
    pub from: Option<NodeId>,
    pub to: NodeId,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MembershipChange {
    SetSigner(Signer),
    AddToken {
        id: String,
        token: JoinToken,
    },
    Join(Joining),
    Depart {
        node: NodeId,
        departure: Departure,
    },
    /// Ends a departure.
    Return {
        node: NodeId,
    },
    /// The node holds nothing any more and is no member from here on.
    Forget {
        node: NodeId,
    },
    /// Refused unless the state has the version that the plan was made from.
    PlanMoves {
        expected_version: u64,
        moves: Vec<PlannedMove>,
    },
    /// The voters of the shard's group are what the move was to make of them, or, of a cancelled one, what they were.
    EndMove {
        shard: ShardId,
        id: u64,
    },
    PauseMoves(bool),
    /// Takes back what is not done yet, and begins nothing until it is resumed.
    CancelMoves,
    /// The data of a replica cannot be trusted: it is to begin anew on the same node.
    Rebuild {
        shard: ShardId,
        replica: ReplicaId,
    },
    /// A majority is lost for good: this node goes on alone, with what it has. Made by whoever looks after the cluster, at a
    /// node that does not run; nobody else proposes it.
    Recover {
        survivor: NodeId,
    },
}

/// Why a change of the members was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipRefusal {
    #[error(
        "there is no such join token: it is another cluster's, or it ended long ago: make a new one"
    )]
    TokenUnknown,
    #[error("the join token was used by node {node}: make a new one for each node")]
    TokenUsed { node: NodeId },
    #[error("the join token has expired: make a new one with drover cluster join-token")]
    TokenExpired,
    #[error(
        "{limit} join tokens were made in the last days: wait until some of them are forgotten"
    )]
    TooManyTokens { limit: usize },
    #[error("the cluster signs certificates already")]
    SignerExists,
    #[error("there is a node {number} already: choose another number, or remove that one first")]
    NumberTaken { number: u32 },
    #[error("the peer address {address} is another node's")]
    AddressTaken { address: String },
    #[error("there are {limit} members already")]
    TooManyMembers { limit: usize },
    #[error("there is no member {node}")]
    MemberNotFound { node: NodeId },
    #[error(
        "without it {left} nodes would be left for {replicas} replicas of each shard: join another node first"
    )]
    TooFewMembers { left: usize, replicas: usize },
    #[error("node {node} is alive and holds replicas: drain it first, then remove it")]
    IsAlive { node: NodeId },
    #[error(
        "{group} would lose its quorum: only {left} of its other replicas answer; bring their nodes back first"
    )]
    LosesQuorum { group: GroupId, left: usize },
    #[error("node {node} still holds replicas")]
    StillHolds { node: NodeId },
    #[error("shard {shard} does not move, or moves otherwise by now")]
    NoSuchMove { shard: ShardId },
}

impl Meta {
    /// The replica of a shard that a node has or is to have.
    pub fn replica(&self, shard: ShardId, node: NodeId) -> ReplicaId {
        ReplicaId::new(node, self.membership.retired(shard, node))
    }

    /// Whether a node is to hold a replica of a shard, even if it is on its way still.
    pub fn hosts(&self, shard: ShardId, node: NodeId) -> bool {
        let is_placed = self.placement.get(&shard).is_some_and(|nodes| nodes.contains(&node));
        is_placed || self.membership.begun(shard).is_some_and(|m| m.to == node)
    }

    /// Who should vote in a shard's group: as it is placed, or as its move is to make it.
    pub fn voters(&self, shard: ShardId) -> BTreeSet<ReplicaId> {
        let placed = self.placement.get(&shard).into_iter().flatten().copied();
        let mut nodes: BTreeSet<NodeId> = placed.collect();
        if let Some(under_way) = self.membership.begun(shard).filter(|m| !m.is_cancelled) {
            under_way.from.map(|from| nodes.remove(&from));
            nodes.insert(under_way.to);
        }
        nodes.into_iter().map(|node| self.replica(shard, node)).collect()
    }

    /// Members that stay.
    pub fn staying(&self) -> impl Iterator<Item = NodeId> {
        let departs = |node: &NodeId| self.membership.departures.contains_key(node);
        self.members.keys().copied().filter(move |node| !departs(node))
    }

    /// Whether a member keeps its replicas.
    pub fn keeps_replicas(&self, node: NodeId) -> bool {
        let departure = self.membership.departures.get(&node);
        departure.is_none_or(|departure| *departure == Departure::Restarting)
    }

    /// Whether any shard has a replica on the node, or is about to.
    pub fn holds_replicas(&self, node: NodeId) -> bool {
        let is_placed = self.placement.values().any(|nodes| nodes.contains(&node));
        let moves = self.membership.moves.values();
        is_placed || moves.into_iter().any(|m| m.to == node || m.from == Some(node))
    }
}

impl Move {
    /// What is placed once the replica has arrived: the new one stands where the old one stood, or last.
    pub(crate) fn arrive(&self, placed: &mut Vec<NodeId>) {
        match self.from.and_then(|from| placed.iter().position(|node| *node == from)) {
            Some(place) => placed[place] = self.to,
            None => placed.push(self.to),
        }
    }
}

impl Membership {
    /// Whether the node is on its way out for good. It may be dead.
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.departures.get(&node) == Some(&Departure::Removed)
    }

    pub fn retired(&self, shard: ShardId, node: NodeId) -> u16 {
        self.retired.get(&(shard, node)).copied().unwrap_or(0)
    }

    /// The move of a shard, if it has begun.
    pub fn begun(&self, shard: ShardId) -> Option<&Move> {
        self.moves.get(&shard).filter(|m| m.began.is_some())
    }

    /// Forgets what has not begun: it was planned for other members.
    fn drop_plan(&mut self) {
        self.moves.retain(|_, planned| planned.began.is_some());
    }

    /// Whatever the node has of the shard is void from here on. At one a second the count would last for a day: a
    /// replica that wraps around would be refused by its own node, which has seen higher ones.
    fn retire(&mut self, shard: ShardId, node: NodeId) {
        let count = self.retired.entry((shard, node)).or_default();
        *count = count.saturating_add(1);
    }
}

/// Applies one change. A refusal changes nothing.
pub(crate) fn apply(
    meta: &mut Meta,
    change: &MembershipChange,
    at: LogTime,
) -> Result<(), MembershipRefusal> {
    match change {
        MembershipChange::SetSigner(signer) => set_signer(meta, signer),
        MembershipChange::AddToken { id, token } => add_token(meta, id, token, at),
        MembershipChange::Join(joining) => join(meta, joining, at),
        MembershipChange::Depart { node, departure } => depart(meta, *node, *departure),
        MembershipChange::Return { node } => match meta.membership.departures.remove(node) {
            Some(_) => {
                meta.membership.drop_plan();
                Ok(())
            }
            None => Err(MembershipRefusal::MemberNotFound { node: *node }),
        },
        MembershipChange::Forget { node } => forget(meta, *node),
        MembershipChange::PlanMoves { moves, .. } => {
            plan_moves(meta, moves)?;
            begin_moves(meta, at);
            Ok(())
        }
        MembershipChange::EndMove { shard, id } => {
            end_move(meta, *shard, *id)?;
            begin_moves(meta, at);
            Ok(())
        }
        MembershipChange::PauseMoves(is_paused) => {
            meta.membership.is_paused = *is_paused;
            begin_moves(meta, at);
            Ok(())
        }
        MembershipChange::CancelMoves => {
            meta.membership.is_paused = true;
            meta.membership.drop_plan();
            // What a rebuild replaces is gone already: there is nothing to go back to.
            let moves = meta.membership.moves.values_mut();
            moves.filter(|m| m.from != Some(m.to)).for_each(|m| m.is_cancelled = true);
            Ok(())
        }
        MembershipChange::Rebuild { shard, replica } => rebuild(meta, *shard, *replica, at),
        MembershipChange::Recover { survivor } => recover(meta, *survivor),
    }
}

fn set_signer(meta: &mut Meta, signer: &Signer) -> Result<(), MembershipRefusal> {
    if meta.membership.signer.is_some() {
        return Err(MembershipRefusal::SignerExists);
    }
    meta.membership.signer = Some(signer.clone());
    Ok(())
}

fn add_token(
    meta: &mut Meta,
    id: &str,
    token: &JoinToken,
    at: LogTime,
) -> Result<(), MembershipRefusal> {
    let tokens = &mut meta.membership.tokens;
    let is_remembered = |token: &JoinToken| at < token.expires.plus_ms(TOKEN_REMEMBERED_MS);
    if tokens.values().filter(|token| is_remembered(token)).count() >= TOKENS_MAX {
        return Err(MembershipRefusal::TooManyTokens { limit: TOKENS_MAX });
    }
    tokens.retain(|_, token| is_remembered(token));
    tokens.insert(id.to_owned(), token.clone());
    Ok(())
}

fn join(meta: &mut Meta, joining: &Joining, at: LogTime) -> Result<(), MembershipRefusal> {
    let token = meta.membership.tokens.get(&joining.token);
    let token = token.ok_or(MembershipRefusal::TokenUnknown)?;
    match &token.used {
        Some(used) if used.key_digest == joining.key_digest => return Ok(()),
        Some(used) => return Err(MembershipRefusal::TokenUsed { node: used.node }),
        None if at >= token.expires => return Err(MembershipRefusal::TokenExpired),
        None => {}
    }
    if meta.members.len() >= MEMBERS_MAX {
        return Err(MembershipRefusal::TooManyMembers { limit: MEMBERS_MAX });
    }
    let address = &joining.member.peer_address;
    if meta.members.values().any(|member| member.peer_address == *address) {
        return Err(MembershipRefusal::AddressTaken { address: address.clone() });
    }
    let node = free_id(meta, joining.number)?;
    meta.members.insert(node, joining.member.clone());
    meta.levels.supported.insert(node, joining.supports);
    meta.membership.drop_plan();
    let used = Joined { node, key_digest: joining.key_digest.clone() };
    meta.membership.tokens.entry(joining.token.clone()).and_modify(|token| token.used = Some(used));
    Ok(())
}

/// An id that no node has ever had: the number that was asked for, or the next one, and the generation after all those
/// that were removed.
fn free_id(meta: &Meta, number: Option<u32>) -> Result<NodeId, MembershipRefusal> {
    let removed = &meta.membership.removed;
    let known = || meta.members.keys().chain(removed);
    let highest = known().map(|node| node.number()).max().unwrap_or(0);
    let number = number.unwrap_or_else(|| highest.saturating_add(1));
    let taken = MembershipRefusal::NumberTaken { number };
    if number == 0 || meta.members.keys().any(|node| node.number() == number) {
        return Err(taken);
    }
    let generations = removed.iter().filter(|node| node.number() == number);
    match generations.map(|node| node.generation()).max() {
        None => Ok(NodeId::new(number, 0)),
        Some(last) if is_planted(Mutation::NodeIdReused) => Ok(NodeId::new(number, last)),
        Some(last) => last.checked_add(1).map(|next| NodeId::new(number, next)).ok_or(taken),
    }
}

fn depart(meta: &mut Meta, node: NodeId, departure: Departure) -> Result<(), MembershipRefusal> {
    if !meta.members.contains_key(&node) {
        return Err(MembershipRefusal::MemberNotFound { node });
    }
    let stays = |other: &&NodeId| **other != node && !meta.membership.is_leaving(**other);
    let left = meta.members.keys().filter(stays).count();
    let replicas = usize::from(meta.replication_factor);
    // Somebody must take its devices, even if nobody can take its replicas.
    let staying = meta.staying().filter(|other| *other != node).count();
    if staying == 0 || departure == Departure::Removed && left < replicas {
        return Err(MembershipRefusal::TooFewMembers { left, replicas });
    }
    meta.membership.departures.insert(node, departure);
    meta.membership.drop_plan();
    Ok(())
}

fn forget(meta: &mut Meta, node: NodeId) -> Result<(), MembershipRefusal> {
    if !meta.membership.is_leaving(node) {
        return Err(MembershipRefusal::MemberNotFound { node });
    }
    if meta.holds_replicas(node) {
        return Err(MembershipRefusal::StillHolds { node });
    }
    meta.members.remove(&node);
    meta.membership.departures.remove(&node);
    meta.levels.supported.remove(&node);
    meta.membership.retired.retain(|(_, of), _| *of != node);
    meta.membership.removed.insert(node);
    Ok(())
}

fn plan_moves(meta: &mut Meta, moves: &[PlannedMove]) -> Result<(), MembershipRefusal> {
    for PlannedMove { shard, from, to } in moves {
        let placed = meta.placement.get(shard).map_or(&[][..], Vec::as_slice);
        let fits = !meta.membership.moves.contains_key(shard)
            && meta.members.contains_key(to)
            && !placed.contains(to)
            && from.is_none_or(|from| placed.contains(&from));
        if !fits {
            return Err(MembershipRefusal::NoSuchMove { shard: *shard });
        }
    }
    let id = meta.version;
    for PlannedMove { shard, from, to } in moves {
        let planned = Move { id, from: *from, to: *to, is_cancelled: false, began: None };
        meta.membership.moves.insert(*shard, planned);
    }
    Ok(())
}

/// Begins what waits and whose nodes take part in no other move. Who is removed may be dead and has nothing to do in one.
fn begin_moves(meta: &mut Meta, at: LogTime) {
    let Membership { moves, departures, is_paused, .. } = &mut meta.membership;
    if *is_paused {
        return;
    }
    let works = |node: &NodeId| departures.get(node) != Some(&Departure::Removed);
    let nodes = |m: &Move| m.from.into_iter().chain([m.to]).filter(works).collect::<Vec<_>>();
    let begun = moves.values().filter(|m| m.began.is_some());
    let mut busy: BTreeSet<NodeId> = begun.flat_map(nodes).collect();
    for waiting in moves.values_mut().filter(|m| m.began.is_none()) {
        let needed = nodes(waiting);
        if needed.iter().all(|node| !busy.contains(node)) {
            waiting.began = Some(at);
            busy.extend(needed);
        }
    }
}

fn end_move(meta: &mut Meta, shard: ShardId, id: u64) -> Result<(), MembershipRefusal> {
    let Some(ended) = meta.membership.begun(shard).filter(|m| m.id == id).cloned() else {
        return Err(MembershipRefusal::NoSuchMove { shard });
    };
    meta.membership.moves.remove(&shard);
    if ended.is_cancelled {
        meta.membership.retire(shard, ended.to);
        return Ok(());
    }
    ended.arrive(meta.placement.entry(shard).or_default());
    if let Some(from) = ended.from.filter(|from| *from != ended.to) {
        meta.membership.retire(shard, from);
    }
    Ok(())
}

/// While another replica of the shard is on its way, or with too few of them, what this one has may still be needed.
fn rebuild(
    meta: &mut Meta,
    shard: ShardId,
    replica: ReplicaId,
    at: LogTime,
) -> Result<(), MembershipRefusal> {
    let node = replica.node();
    let placed = meta.placement.get(&shard).map_or(&[][..], Vec::as_slice);
    let begins = !meta.membership.moves.contains_key(&shard)
        && meta.replica(shard, node) == replica
        && placed.contains(&node)
        && placed.len() >= REPLICAS_TO_REBUILD_MIN;
    if !begins {
        return Err(MembershipRefusal::NoSuchMove { shard });
    }
    let (id, from) = (meta.version, Some(node));
    let begun = Move { id, from, to: node, is_cancelled: false, began: Some(at) };
    meta.membership.moves.insert(shard, begun);
    meta.membership.retire(shard, node);
    Ok(())
}

/// What the others had is void wherever it is, and so is what was on its way.
fn recover(meta: &mut Meta, survivor: NodeId) -> Result<(), MembershipRefusal> {
    let Some(member) = meta.members.get(&survivor).cloned() else {
        return Err(MembershipRefusal::MemberNotFound { node: survivor });
    };
    let lost = std::mem::replace(&mut meta.members, BTreeMap::from([(survivor, member)]));
    meta.membership.removed.extend(lost.into_keys().filter(|node| *node != survivor));
    meta.membership.departures.clear();
    meta.membership.moves.clear();
    meta.membership.retired.retain(|(_, node), _| *node == survivor);
    meta.levels.supported.retain(|node, _| *node == survivor);
    meta.placement = meta.shard_count.shards().map(|shard| (shard, vec![survivor])).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{self, MetaChange, MetaRefusal};
    use crate::testing::cluster;

    const NOW: LogTime = LogTime::new(1_000);

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    fn change(
        state: &mut Option<Meta>,
        change: MembershipChange,
    ) -> Result<u64, MembershipRefusal> {
        change_at(state, change, NOW)
    }

    fn change_at(
        state: &mut Option<Meta>,
        change: MembershipChange,
        at: LogTime,
    ) -> Result<u64, MembershipRefusal> {
        let before = state.clone();
        meta::apply(state, &MetaChange::Membership(change), at).map_err(|refusal| {
            assert_eq!(*state, before, "a refusal changes nothing");
            let MetaRefusal::Membership(refusal) = refusal else { panic!("{refusal}") };
            refusal
        })
    }

    fn add_token(state: &mut Option<Meta>, id: &str) {
        let (digest, expires) = (Bytes::from_static(b"digest"), NOW.plus_ms(10));
        let token = JoinToken { digest, expires, used: None };
        change(state, MembershipChange::AddToken { id: id.to_owned(), token })
            .expect("there is room");
    }

    fn joining(token: &str, number: Option<u32>, key: &'static [u8]) -> MembershipChange {
        let peer_address = String::from_utf8_lossy(key).into_owned();
        let member = Member { peer_address, admin_address: String::new(), zone: String::new() };
        let key_digest = Bytes::from_static(key);
        let (token, supports) = (token.to_owned(), FeatureLevel::FIRST);
        MembershipChange::Join(Joining { token, number, key_digest, member, supports })
    }

    fn first_shard(state: Option<&Meta>) -> ShardId {
        *state.expect("a cluster").placement.keys().next().expect("a shard")
    }

    fn of(state: Option<&Meta>) -> &Meta {
        state.expect("a cluster")
    }

    fn begin(state: &mut Option<Meta>, from: u32, to: u32) -> (ShardId, u64) {
        let shard = first_shard(state.as_ref());
        let planned = PlannedMove { shard, from: Some(node(from)), to: node(to) };
        let expected_version = of(state.as_ref()).version;
        let moves = vec![planned];
        change(state, MembershipChange::PlanMoves { expected_version, moves }).expect("it fits");
        (shard, of(state.as_ref()).membership.moves[&shard].id)
    }

    #[test]
    fn a_survivor_is_all_of_the_cluster_and_no_lost_node_is_a_member_again() {
        let mut before = cluster(4);
        let level = FeatureLevel::LATEST;
        before.levels.supported = BTreeMap::from([1, 3].map(|number| (node(number), level)));
        let mut state = Some(before);
        begin(&mut state, 1, 4);
        change(
            &mut state,
            MembershipChange::Depart { node: node(2), departure: Departure::Drained },
        )
        .expect("others are left");
        let refusal = MembershipRefusal::MemberNotFound { node: node(9) };
        let recover = |number| MembershipChange::Recover { survivor: node(number) };
        assert_eq!(change(&mut state, recover(9)), Err(refusal));
        change(&mut state, recover(3)).expect("it is a member");
        let meta = of(state.as_ref());
        assert_eq!(meta.members.keys().copied().collect::<Vec<_>>(), [node(3)]);
        assert!(meta.placement.values().all(|placed| *placed == [node(3)]), "{:?}", meta.placement);
        assert_eq!(meta.membership.removed, BTreeSet::from([1, 2, 4].map(node)));
        assert!(meta.membership.moves.is_empty() && meta.membership.departures.is_empty());
        assert_eq!(meta.replication_factor, 3, "replicas come back as nodes join");
        assert_eq!(meta.levels.supported, BTreeMap::from([(node(3), level)]));

        add_token(&mut state, "t");
        change(&mut state, joining("t", Some(1), b"one")).expect("the number is free");
        assert!(of(state.as_ref()).members.contains_key(&NodeId::new(1, 1)), "another member");
    }

    #[test]
    fn a_token_lets_one_node_in_once_and_the_same_node_again() {
        let mut state = Some(cluster(3));
        add_token(&mut state, "t");
        change(&mut state, joining("t", None, b"four:1")).expect("the token is fresh");
        assert!(of(state.as_ref()).members.contains_key(&node(4)), "the next number");
        let members = of(state.as_ref()).members.clone();
        change(&mut state, joining("t", None, b"four:1")).expect("its answer was lost");
        assert_eq!(of(state.as_ref()).members, members);
        let other = change(&mut state, joining("t", None, b"five:1"));
        assert_eq!(other, Err(MembershipRefusal::TokenUsed { node: node(4) }));
    }

    #[test]
    fn an_expired_and_a_foreign_token_let_nobody_in() {
        let mut state = Some(cluster(3));
        add_token(&mut state, "t");
        let late = change_at(&mut state, joining("t", None, b"four:1"), NOW.plus_ms(10));
        assert_eq!(late, Err(MembershipRefusal::TokenExpired));
        let foreign = change(&mut state, joining("u", None, b"four:1"));
        assert_eq!(foreign, Err(MembershipRefusal::TokenUnknown));
    }

    #[test]
    fn no_two_nodes_have_one_number_or_one_address() {
        let mut state = Some(cluster(3));
        add_token(&mut state, "t");
        let taken = change(&mut state, joining("t", Some(2), b"four:1"));
        assert_eq!(taken, Err(MembershipRefusal::NumberTaken { number: 2 }));
        assert_eq!(
            change(&mut state, joining("t", Some(0), b"four:1")),
            Err(MembershipRefusal::NumberTaken { number: 0 })
        );
        let address = "node-2:7070".to_owned();
        assert_eq!(
            change(&mut state, joining("t", None, b"node-2:7070")),
            Err(MembershipRefusal::AddressTaken { address })
        );
    }

    #[test]
    fn a_node_that_was_removed_comes_back_as_another_generation() {
        let mut state = Some(cluster(4));
        for shard in of(state.as_ref()).placement.keys().copied().collect::<Vec<_>>() {
            let meta = state.as_mut().expect("a cluster");
            meta.placement.insert(shard, vec![node(1), node(2), node(3)]);
        }
        let departure = Departure::Removed;
        change(&mut state, MembershipChange::Depart { node: node(4), departure }).expect("3 stay");
        change(&mut state, MembershipChange::Forget { node: node(4) }).expect("it holds nothing");
        add_token(&mut state, "t");
        change(&mut state, joining("t", Some(4), b"four:1")).expect("the number is free");
        let members: Vec<NodeId> = of(state.as_ref()).members.keys().copied().collect();
        assert_eq!(members[3], NodeId::new(4, 1));
        add_token(&mut state, "u");
        change(&mut state, joining("u", None, b"five:1")).expect("the token is fresh");
        assert!(of(state.as_ref()).members.contains_key(&node(5)));
    }

    #[test]
    fn a_removal_that_leaves_too_few_nodes_for_the_replicas_is_refused() {
        let mut state = Some(cluster(4));
        let departure = Departure::Removed;
        let remove = |number| MembershipChange::Depart { node: node(number), departure };
        change(&mut state, remove(1)).expect("three are left");
        let refusal = MembershipRefusal::TooFewMembers { left: 2, replicas: 3 };
        assert_eq!(change(&mut state, remove(2)), Err(refusal));
        assert_eq!(
            change(&mut state, remove(9)),
            Err(MembershipRefusal::MemberNotFound { node: node(9) })
        );
        assert_eq!(
            change(&mut state, MembershipChange::Forget { node: node(1) }),
            Err(MembershipRefusal::StillHolds { node: node(1) })
        );
    }

    #[test]
    fn a_removal_can_be_taken_back_as_long_as_the_node_is_a_member() {
        let mut state = Some(cluster(4));
        let departure = Departure::Removed;
        change(&mut state, MembershipChange::Depart { node: node(4), departure })
            .expect("three are left");
        change(&mut state, MembershipChange::Return { node: node(4) }).expect("it is a member");
        assert!(of(state.as_ref()).staying().any(|stays| stays == node(4)));
        change(&mut state, MembershipChange::Depart { node: node(4), departure })
            .expect("three are left");
        if let Some(meta) = &mut state {
            meta.placement.values_mut().for_each(|placed| placed.retain(|of| *of != node(4)));
        }
        change(&mut state, MembershipChange::Forget { node: node(4) }).expect("it holds nothing");
        let gone = Err(MembershipRefusal::MemberNotFound { node: node(4) });
        assert_eq!(change(&mut state, MembershipChange::Return { node: node(4) }), gone);
    }

    #[test]
    fn a_move_replaces_a_replica_in_its_place_and_what_it_left_is_void() {
        let mut state = Some(cluster(4));
        let shard = first_shard(state.as_ref());
        let meta = state.as_mut().expect("a cluster");
        meta.placement.insert(shard, vec![node(1), node(2), node(3)]);
        let (shard, id) = begin(&mut state, 1, 4);
        let voters = of(state.as_ref()).voters(shard);
        assert_eq!(voters, BTreeSet::from([2, 3, 4].map(|n| ReplicaId::first(node(n)))));
        assert!(
            of(state.as_ref()).hosts(shard, node(1)) && of(state.as_ref()).hosts(shard, node(4))
        );
        change(&mut state, MembershipChange::EndMove { shard, id }).expect("it is under way");
        assert_eq!(of(state.as_ref()).placement[&shard], [node(4), node(2), node(3)]);
        assert_eq!(of(state.as_ref()).replica(shard, node(1)), ReplicaId::new(node(1), 1));
        let again = change(&mut state, MembershipChange::EndMove { shard, id });
        assert_eq!(again, Err(MembershipRefusal::NoSuchMove { shard }));
    }

    #[test]
    fn a_cancelled_move_leaves_the_placement_and_what_it_had_copied_is_void() {
        let mut state = Some(cluster(4));
        let shard = first_shard(state.as_ref());
        let meta = state.as_mut().expect("a cluster");
        meta.placement.insert(shard, vec![node(1), node(2), node(3)]);
        let before = of(state.as_ref()).voters(shard);
        let (shard, id) = begin(&mut state, 1, 4);
        change(&mut state, MembershipChange::CancelMoves).expect("always");
        assert!(of(state.as_ref()).membership.is_paused);
        assert_eq!(of(state.as_ref()).voters(shard), before);
        change(&mut state, MembershipChange::EndMove { shard, id }).expect("it is under way");
        assert_eq!(of(state.as_ref()).placement[&shard], [node(1), node(2), node(3)]);
        assert_eq!(of(state.as_ref()).replica(shard, node(4)), ReplicaId::new(node(4), 1));
    }

    #[test]
    fn one_damaged_replica_of_three_is_rebuilt_under_a_new_id_and_a_second_waits() {
        let mut state = Some(cluster(3));
        let shard = first_shard(state.as_ref());
        let rebuild = |number, incarnation| MembershipChange::Rebuild {
            shard,
            replica: ReplicaId::new(node(number), incarnation),
        };
        change(&mut state, rebuild(2, 0)).expect("two are left");
        let rebuilt = ReplicaId::new(node(2), 1);
        assert_eq!(
            of(state.as_ref()).voters(shard),
            BTreeSet::from([ReplicaId::first(node(1)), rebuilt, ReplicaId::first(node(3))])
        );
        let refusal = Err(MembershipRefusal::NoSuchMove { shard });
        assert_eq!(change(&mut state, rebuild(3, 0)), refusal, "its data may still be needed");
        let id = of(state.as_ref()).membership.moves[&shard].id;
        let placed = of(state.as_ref()).placement[&shard].clone();
        change(&mut state, MembershipChange::EndMove { shard, id }).expect("it is under way");
        assert_eq!(of(state.as_ref()).placement[&shard], placed);
        assert_eq!(of(state.as_ref()).replica(shard, node(2)), rebuilt);
        assert_eq!(change(&mut state, rebuild(2, 0)), refusal, "that one is gone already");
    }
}
