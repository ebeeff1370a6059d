//! Each claim, with observations that break it and others that only seem to.

use super::*;

const GROUP: GroupId = GroupId::Meta;

/// Of three nodes that vote from the first entry on.
fn claims() -> Claims {
    let mut claims = Claims::new(History::new(), Directory::new(3));
    claims.see_committed_voters(GROUP, 0, voters(&[1, 2, 3]));
    claims
}

fn voters(nodes: &[u32]) -> Voters {
    Voters(vec![nodes.iter().copied().map(node).collect()])
}

fn broken(claims: &Claims) -> Vec<&'static str> {
    claims.history.lock().violations.iter().map(|violation| violation.invariant).collect()
}

fn node(number: u32) -> ReplicaId {
    ReplicaId::first(NodeId::new(number, 0))
}

fn entry(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn vote(term: u64, node: u64, committed: bool) -> record::Vote {
    record::Vote { term, node, committed }
}

#[test]
fn two_leaders_of_a_term_are_found() {
    let mut claims = claims();
    claims.see_leader(1, GROUP, 3, node(1));
    claims.see_leader(2, GROUP, 3, node(1));
    claims.see_leader(2, GROUP, 4, node(2));
    assert_eq!(broken(&claims), [""; 0]);
    claims.see_leader(3, GROUP, 3, node(2));
    assert_eq!(broken(&claims), ["I-32 election safety"]);
}

#[test]
fn entries_of_an_index_and_a_term_that_differ_are_found() {
    let mut claims = claims();
    claims.see_entry(1, GROUP, (7, 2), 70, Some(1));
    claims.see_entry(2, GROUP, (7, 2), 70, None);
    claims.see_entry(2, GROUP, (7, 3), 71, Some(2));
    assert_eq!(broken(&claims), [""; 0]);
    claims.see_entry(3, GROUP, (7, 2), 99, Some(1));
    assert_eq!(broken(&claims), ["I-32 log matching"]);
}

#[test]
fn an_entry_that_follows_another_one_elsewhere_is_found() {
    let mut claims = claims();
    claims.see_entry(1, GROUP, (7, 2), 70, None);
    claims.see_entry(2, GROUP, (7, 2), 70, Some(1));
    claims.see_entry(3, GROUP, (7, 2), 70, Some(2));
    assert_eq!(broken(&claims), ["I-32 log matching"]);
}

#[test]
fn replicas_that_apply_different_entries_are_found() {
    for (term, text) in [(3, "a"), (2, "b")] {
        let mut claims = claims();
        claims.see_committed(1, GROUP, (7, 2), entry("a"));
        claims.see_committed(2, GROUP, (7, 2), entry("a"));
        assert_eq!(broken(&claims), [""; 0]);
        claims.see_committed(3, GROUP, (7, term), entry(text));
        assert_eq!(broken(&claims), ["I-32 state machine safety"]);
    }
}

#[test]
fn a_committed_entry_that_a_minority_has_is_found() {
    let mut claims = claims();
    claims.see_committed(1, GROUP, (7, 2), entry("a"));
    assert_eq!(claims.take_uncounted(), [(GROUP, 7, entry("a"))]);
    assert_eq!(claims.take_uncounted(), [], "each is counted once");
    claims.see_holders(GROUP, 7, &BTreeSet::from([node(1), node(3)]));
    assert_eq!(broken(&claims), [""; 0]);
    claims.see_holders(GROUP, 7, &BTreeSet::from([node(1), node(4)]));
    assert_eq!(broken(&claims), ["I-32 committed on a quorum"]);
}

/// Entry 7 of term 2 is committed; node 1 leads term 3, and its log is this.
fn led_with(tail: &[(u64, u64)], crashes: bool) -> Vec<&'static str> {
    let mut claims = claims();
    claims.see_committed(2, GROUP, (7, 2), entry("a"));
    if crashes {
        claims.forget(1);
    }
    claims.see_leader(1, GROUP, 3, node(1));
    let tails = BTreeMap::from([((GROUP, 1), tail.iter().copied().collect())]);
    claims.see_tails(&tails);
    broken(&claims)
}

#[test]
fn a_leader_that_lacks_what_is_committed_is_found() {
    assert_eq!(led_with(&[(6, 2), (7, 2), (8, 3)], false), [""; 0]);
    assert_eq!(led_with(&[(6, 2)], false), ["I-32 leader completeness"]);
    assert_eq!(led_with(&[(6, 2), (7, 1)], false), ["I-32 leader completeness"]);
    assert_eq!(led_with(&[(6, 2)], true), [""; 0], "it has crashed, and may lead no more");
}

#[test]
fn a_leader_need_not_have_what_a_newer_one_has_committed() {
    let mut claims = claims();
    claims.see_committed(2, GROUP, (7, 4), entry("a"));
    claims.see_leader(1, GROUP, 3, node(1));
    claims.see_tails(&BTreeMap::from([((GROUP, 1), [(6, 2)].into_iter().collect())]));
    assert_eq!(broken(&claims), [""; 0]);
}

#[test]
fn a_vote_that_is_taken_back_is_found() {
    let changed = |before, after| {
        let mut claims = claims();
        claims.see_durable_vote(node(1), GROUP, before);
        claims.see_durable_vote(node(1), GROUP, after);
        broken(&claims)
    };
    assert_eq!(changed(vote(3, 1, false), vote(4, 2, false)), [""; 0]);
    assert_eq!(changed(vote(3, 1, false), vote(3, 2, true)), [""; 0], "another one has won");
    let taken_back = ["I-32 monotone votes"];
    assert_eq!(changed(vote(3, 1, false), vote(2, 1, false)), taken_back);
    assert_eq!(changed(vote(3, 1, false), vote(3, 2, false)), taken_back);
    assert_eq!(changed(vote(3, 1, true), vote(3, 1, false)), taken_back);
}

#[test]
fn what_falls_back_is_found() {
    let claims = claims();
    claims.see_applied(1, GROUP, 5, 5);
    assert_eq!(broken(&claims), [""; 0]);
    claims.see_applied(1, GROUP, 5, 4);
    assert_eq!(broken(&claims), ["I-32 monotone"]);
}

#[test]
fn a_log_that_does_not_reach_from_what_is_purged_to_what_is_applied_is_found() {
    for (purged, applied, last) in [(0, 5, 4), (6, 5, 9)] {
        let claims = claims();
        claims.see_extent(1, GROUP, 5, 5, 5);
        assert_eq!(broken(&claims), [""; 0]);
        claims.see_extent(1, GROUP, purged, applied, last);
        assert_eq!(broken(&claims), ["I-32 purged, applied, last"]);
    }
}

#[test]
fn replicas_that_hold_different_states_are_found() {
    let mut claims = claims();
    claims.see_state(1, GROUP, 5, 50);
    claims.see_state(2, GROUP, 5, 50);
    claims.see_state(2, GROUP, 6, 60);
    assert_eq!(broken(&claims), [""; 0]);
    claims.see_state(3, GROUP, 5, 51);
    assert_eq!(broken(&claims), ["I-15 replicas agree"]);
}

#[test]
fn what_only_later_voters_hold_is_committed_by_them() {
    let mut claims = claims();
    let holders = BTreeSet::from([node(1), node(4)]);
    claims.see_voters(1, GROUP, (8, 2), voters(&[1, 4, 5]));
    claims.see_holders(GROUP, 7, &holders);
    assert_eq!(broken(&claims), [""; 0]);
    claims.see_holders(GROUP, 9, &holders);
    assert_eq!(broken(&claims), ["I-32 committed on a quorum"]);
}

#[test]
fn voters_that_could_decide_beside_those_before_them_are_found() {
    let changed = |index, after: &[u32]| {
        let mut claims = claims();
        for before in 0..3 {
            claims.see_committed(1, GROUP, (before, 1), entry("a"));
        }
        claims.see_committed_voters(GROUP, index, voters(after));
        broken(&claims)
    };
    assert_eq!(changed(3, &[1, 2, 3, 4]), [""; 0]);
    assert_eq!(changed(3, &[1, 4, 5]), ["I-32 quorums overlap"]);
    assert_eq!(changed(4, &[1, 4, 5]), [""; 0], "something between them was not seen");
}

#[test]
fn two_votes_of_one_node_are_found() {
    let mut claims = claims();
    let twice = BTreeSet::from([node(1), ReplicaId::new(NodeId::new(1, 0), 1), node(2)]);
    claims.see_voters(1, GROUP, (8, 2), Voters(vec![twice]));
    assert_eq!(broken(&claims), ["I-32 one replica a node"]);
}

#[test]
fn a_removed_node_that_leads_or_votes_again_is_found() {
    let mut claims = claims();
    claims.see_leader(1, GROUP, 3, node(2));
    claims.see_durable_vote(node(2), GROUP, vote(3, 2, true));
    claims.see_removed(&BTreeSet::from([NodeId::new(2, 0)]));
    claims.see_leader(3, GROUP, 3, node(2));
    claims.see_durable_vote(node(2), GROUP, vote(4, 1, true));
    assert_eq!(broken(&claims), [""; 0], "it hears of others, and led before");
    claims.see_durable_vote(node(2), GROUP, vote(5, 1, false));
    claims.see_leader(1, GROUP, 6, node(2));
    assert_eq!(broken(&claims), ["I-35 removed for good"; 2]);
}
