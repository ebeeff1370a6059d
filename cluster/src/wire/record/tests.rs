//! What is encoded is decoded to the same, and whatever else is decoded is answered.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use drover_core::access::Permission;
use drover_core::authority::{Authority, AuthorityChange, Possession};
use drover_core::change::{Batch, Change, Condition, DeviceChange, Message, Sender, TwinUpdate};
use drover_core::device::{Key, Status};
use drover_core::document::{Object, Value, check_content};
use drover_core::ids::{DeviceId, GenerationId, LogTime, NodeId, Offset, SessionEpoch};
use drover_core::ids::{ReplicaId, ShardCount, ShardId};
use drover_core::level::{FeatureLevel, LevelChange, Levels};
use drover_core::membership::{
    Departure, JoinToken, Joined, Joining, Membership, MembershipChange, Move, PlannedMove,
    PrivateKey, Signer,
};
use drover_core::meta::{Member, Meta, MetaChange, MetaEntry, Policy};
use drover_proto::record;
use proptest::prelude::*;

use super::*;
use crate::wire::testing;

proptest! {
    #[test]
    fn batches_survive(batch in testing::batch()) {
        prop_assert_eq!(batch_from_bytes(batch_to_bytes(&batch)), Ok(batch));
    }

    #[test]
    fn changes_survive(change in testing::change()) {
        prop_assert_eq!(change_from_bytes(change_to_bytes(&change)), Ok(change));
    }

    #[test]
    fn devices_survive(device in testing::device()) {
        prop_assert_eq!(device_from_bytes(device_to_bytes(&device)), Ok(device));
    }

    #[test]
    fn twins_survive(twin in testing::twin()) {
        prop_assert_eq!(twin_from_bytes(twin_to_bytes(&twin)), Ok(twin));
    }

    #[test]
    fn commands_survive(command in testing::command()) {
        prop_assert_eq!(command_from_bytes(command_to_bytes(&command)), Ok(command));
    }

    #[test]
    fn feedback_survives(feedback in testing::feedback()) {
        prop_assert_eq!(feedback_from_bytes(feedback_to_bytes(&feedback)), Ok(feedback));
    }

    #[test]
    fn streams_survive(stream in testing::stream()) {
        prop_assert_eq!(stream_from_bytes(stream_to_bytes(&stream)), Ok(stream));
    }

    #[test]
    fn a_damaged_record_is_answered_and_never_a_panic(
        batch in testing::batch(), place: prop::sample::Index, flip in 1_u8..,
    ) {
        let mut bytes = batch_to_bytes(&batch).to_vec();
        if !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
        }
        let bytes = Bytes::from(bytes);
        let _answered = (batch_from_bytes(bytes.clone()), device_from_bytes(bytes.clone()));
        let _answered = (twin_from_bytes(bytes.clone()), stream_from_bytes(bytes.clone()));
        let _answered = (meta_from_bytes(bytes.clone()), meta_entry_from_bytes(bytes));
    }
}

fn authority(possession: Possession) -> Authority {
    let status = match possession {
        Possession::Proven => Status::Disabled,
        Possession::Unproven { .. } => Status::Enabled,
    };
    Authority { certificate: Bytes::from_static(b"DER"), possession, status }
}

fn meta() -> Meta {
    let shard_count = ShardCount::new(2).expect("a legal count");
    let member = Member {
        peer_address: "10.0.0.1:7000".to_owned(),
        admin_address: "10.0.0.1:7001".to_owned(),
        zone: "a".to_owned(),
    };
    let key = |byte| Key::new(vec![byte; 32]).expect("a legal length");
    let policy =
        Policy { primary: key(1), secondary: key(2), permissions: BTreeSet::from(Permission::ALL) };
    Meta {
        cluster_id: "c1".to_owned(),
        name: "Plant North".to_owned(),
        shard_count,
        replication_factor: 3,
        members: BTreeMap::from([(NodeId::new(1, 2), member)]),
        placement: shard_count.shards().map(|shard| (shard, vec![NodeId::new(1, 2)])).collect(),
        policies: BTreeMap::from([("owner".to_owned(), policy)]),
        authorities: BTreeMap::from([
            ("mill".to_owned(), authority(Possession::Proven)),
            ("factory".to_owned(), authority(Possession::Unproven { code: "c".to_owned() })),
        ]),
        membership: membership(),
        levels: Levels {
            active: FeatureLevel::new(2),
            is_held: true,
            supported: BTreeMap::from([(NodeId::new(1, 2), FeatureLevel::new(3))]),
        },
        restoring: Some("b1".to_owned()),
        version: 7,
    }
}

fn shard() -> ShardId {
    ShardId::new(3, ShardCount::new(16).expect("a legal count")).expect("a shard of 16")
}

fn token() -> JoinToken {
    let used = Joined { node: NodeId::new(4, 1), key_digest: Bytes::from_static(b"key") };
    let (digest, expires) = (Bytes::from_static(b"digest"), LogTime::new(8));
    JoinToken { digest, expires, used: Some(used) }
}

fn signer() -> Signer {
    let (certificate, key) = (Bytes::from_static(b"DER"), PrivateKey(Bytes::from_static(b"K")));
    Signer { certificate, key }
}

fn membership() -> Membership {
    let node = |number| NodeId::new(number, 0);
    let moved = |from: Option<u32>, began: Option<u64>| Move {
        id: 5,
        from: from.map(node),
        to: node(4),
        is_cancelled: from.is_none(),
        began: began.map(LogTime::new),
    };
    let other = ShardId::new(4, ShardCount::new(16).expect("a legal count")).expect("a shard");
    Membership {
        signer: Some(signer()),
        tokens: BTreeMap::from([
            ("t".to_owned(), token()),
            ("u".to_owned(), JoinToken { used: None, ..token() }),
        ]),
        departures: BTreeMap::from([(node(1), Departure::Drained), (node(2), Departure::Removed)]),
        removed: BTreeSet::from([node(9)]),
        moves: BTreeMap::from([(shard(), moved(Some(1), Some(6))), (other, moved(None, None))]),
        is_paused: true,
        retired: BTreeMap::from([((shard(), node(3)), 2)]),
    }
}

#[test]
fn changes_of_the_members_survive() {
    let node = NodeId::new(3, 1);
    let member = Member {
        peer_address: "a:1".to_owned(),
        admin_address: "a:2".to_owned(),
        zone: "z".to_owned(),
    };
    let (token_id, key_digest) = ("t".to_owned(), Bytes::from_static(b"key"));
    let (token, number, supports) = (token_id.clone(), Some(0), FeatureLevel::new(2));
    let joining = Joining { token, number, key_digest, member, supports };
    let planned = PlannedMove { shard: shard(), from: Some(node), to: NodeId::new(4, 0) };
    for change in [
        MembershipChange::SetSigner(signer()),
        MembershipChange::AddToken { id: token_id, token: self::token() },
        MembershipChange::Join(Joining { number: None, ..joining.clone() }),
        MembershipChange::Join(joining),
        MembershipChange::Depart { node, departure: Departure::Drained },
        MembershipChange::Depart { node, departure: Departure::Removed },
        MembershipChange::Depart { node, departure: Departure::Restarting },
        MembershipChange::Return { node },
        MembershipChange::Forget { node },
        MembershipChange::PlanMoves {
            expected_version: 7,
            moves: vec![planned, PlannedMove { from: None, ..planned }],
        },
        MembershipChange::EndMove { shard: shard(), id: 7 },
        MembershipChange::PauseMoves(true),
        MembershipChange::PauseMoves(false),
        MembershipChange::CancelMoves,
        MembershipChange::Rebuild { shard: shard(), replica: ReplicaId::new(node, 2) },
        MembershipChange::Recover { survivor: node },
    ] {
        let entry = MetaEntry { at: LogTime::new(9), change: MetaChange::Membership(change) };
        assert_eq!(meta_entry_from_bytes(meta_entry_to_bytes(&entry)), Ok(entry));
    }
}

#[test]
fn the_meta_state_survives() {
    assert_eq!(meta_from_bytes(meta_to_bytes(&meta())), Ok(meta()));
}

#[test]
fn entries_of_the_meta_group_survive() {
    let Meta { placement, mut policies, .. } = meta();
    let policy = policies.remove("owner").expect("it is there");
    let name = "owner".to_owned();
    let (code, node) = (|| "c".to_owned(), NodeId::new(2, 1));
    let of_authority = |change| MetaChange::Authority { name: "factory".to_owned(), change };
    for change in [
        of_authority(AuthorityChange::Create {
            certificate: Bytes::from_static(b"DER"),
            code: code(),
        }),
        of_authority(AuthorityChange::ReplaceCode { code: code() }),
        of_authority(AuthorityChange::Prove { code: code() }),
        of_authority(AuthorityChange::SetStatus(Status::Disabled)),
        of_authority(AuthorityChange::SetStatus(Status::Enabled)),
        of_authority(AuthorityChange::Delete),
        MetaChange::Initialize(Box::new(meta())),
        MetaChange::PutPolicy {
            name: name.clone(),
            policy: policy.clone(),
            expected_version: None,
        },
        MetaChange::PutPolicy { name: name.clone(), policy, expected_version: Some(7) },
        MetaChange::DeletePolicy { name },
        MetaChange::EndRestore,
        MetaChange::Place { expected_version: 7, placement },
        MetaChange::Level(LevelChange::Announce { node, supports: FeatureLevel::new(3) }),
        MetaChange::Level(LevelChange::Hold(true)),
        MetaChange::Level(LevelChange::Hold(false)),
        MetaChange::Level(LevelChange::Raise { to: FeatureLevel::new(3) }),
        MetaChange::Rename { name: "Plant North".to_owned() },
    ] {
        let entry = MetaEntry { at: LogTime::new(9), change };
        assert_eq!(meta_entry_from_bytes(meta_entry_to_bytes(&entry)), Ok(entry));
    }
}

#[test]
fn a_meta_state_from_before_there_were_levels_is_at_the_first() {
    let bytes = meta_to_bytes(&meta());
    let mut record: record::Meta = decode("meta", bytes).expect("it was just encoded");
    record.levels = None;
    let read = meta_from_bytes(encode(&record)).expect("it lacks nothing that it must have");
    assert_eq!(read.levels, Levels::default());
}

#[test]
fn what_is_missing_is_named() {
    let batch = record::Batch { at_ms: 1, changes: vec![record::Change::default()] };
    let invalid = batch_from_bytes(encode(&batch)).expect_err("a change of no kind");
    assert_eq!(invalid.field, "change.kind");
    let device = record::Device { id: "a/b".to_owned(), ..record::Device::default() };
    assert!(device_from_bytes(encode(&device)).is_err());
}

/// A patch of so many objects within each other below the root.
fn nested(levels: usize) -> Object {
    let of = |value| Object::from([("n".to_owned(), value)]);
    let value = (0..levels).fold(Value::Bool(true), |value, _| Value::Object(of(value)));
    of(value)
}

fn patch_batch(desired: Object) -> Batch {
    let device: DeviceId = "pump".parse().expect("a legal id");
    let change = DeviceChange::UpdateTwin {
        if_match: Condition::Any,
        expected_desired: None,
        mode: TwinUpdate::Merge,
        tags: None,
        desired: Some(desired),
    };
    Batch { at: LogTime::new(1), changes: vec![Change::Device(device, change)] }
}

#[test]
fn a_patch_as_deep_as_a_twin_may_be_survives() {
    let batch = patch_batch(nested(10));
    assert_eq!(batch_from_bytes(batch_to_bytes(&batch)), Ok(batch));
}

#[test]
fn no_patch_is_too_deep_for_the_log_and_apply_refuses_it_as_it_would_have() {
    for levels in [11, 12, 126] {
        let given = nested(levels);
        let mut batch = batch_from_bytes(batch_to_bytes(&patch_batch(given.clone())))
            .expect("it would stop every replica");
        let Some(Change::Device(_, DeviceChange::UpdateTwin { desired, .. })) = batch.changes.pop()
        else {
            panic!("one update went in")
        };
        assert!(check_content(&given).is_err());
        assert_eq!(check_content(&desired.expect("it was given")), check_content(&given));
    }
}

#[test]
fn telemetry_is_decoded_without_a_copy() {
    let device: DeviceId = "pump".parse().expect("a legal id");
    let change = DeviceChange::Telemetry {
        sender: Sender::Session(SessionEpoch::new(1)),
        messages: vec![Message(Bytes::from(vec![7; 100]))],
    };
    let batch = Batch { at: LogTime::new(1), changes: vec![Change::Device(device, change)] };
    let bytes = batch_to_bytes(&batch);
    let stored = bytes.as_ptr_range();
    let mut batch = batch_from_bytes(bytes).expect("encoded above");
    let Some(Change::Device(_, DeviceChange::Telemetry { messages, .. })) = batch.changes.pop()
    else {
        panic!("telemetry went in")
    };
    assert!(stored.contains(&messages[0].0.as_ptr()));
}

#[test]
fn the_messages_of_a_chunk_have_offsets_without_holes_across_its_runs() {
    let run = |device: &str, epoch, bodies: &[&'static [u8]]| record::Run {
        device: device.to_owned(),
        generation: 3,
        epoch,
        authentication: record::AuthenticationKind::Sas.into(),
        messages: bodies.iter().map(|body| Bytes::from_static(body)).collect(),
    };
    let runs = vec![run("a", 5, &[b"1", b"2"]), run("b", 0, &[b"3"])];
    let shard = ShardId::new(0, ShardCount::new(1).expect("legal")).expect("legal");
    let chunk = record::Chunk { first_offset: 40, at_ms: 9, runs };
    let read: Vec<_> = messages(shard, chunk).collect::<Result<_, _>>().expect("legal ids");
    let offsets: Vec<Offset> = read.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, [40, 41, 42].map(Offset::new));
    let last = &read[2];
    assert_eq!((last.device.as_str(), last.epoch), ("b", None));
    assert_eq!((last.at, last.generation), (LogTime::new(9), GenerationId::new(3)));
    assert_eq!(last.message, Message(Bytes::from_static(b"3")));
}
