//! The one way into the cluster: a method a request. Each may be called at any node.

use drover_core::change::{Condition, DeviceSpec, TwinUpdate};
use drover_core::device::{Authentication, Device, Status};
use drover_core::document::Object;
use drover_core::ids::{DeviceId, LogTime, NodeId, Offset, ShardId, Version};
pub use drover_core::message::{Live, StoredMessage, StreamPage};
use drover_core::meta::{Member, Meta, Policy};
use drover_core::twin::Twin;
use tokio::sync::mpsc;

use super::error::Error;
use super::session::{OpenSession, Session};

/// The handle that every protocol edge holds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cluster {}

/// What a back end may change of an identity. `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct DeviceUpdate {
    pub status: Option<Status>,
    pub status_reason: Option<Option<String>>,
    pub authentication: Option<Authentication>,
}

/// What a back end may change of a twin.
#[derive(Debug, Clone)]
pub struct TwinChange {
    pub if_match: Condition,
    pub expected_desired: Option<Version>,
    pub mode: TwinUpdate,
    pub tags: Option<Object>,
    pub desired: Option<Object>,
}

/// A page of devices, in the order of shards and then ids.
#[derive(Debug, Clone)]
pub struct DevicePage {
    pub devices: Vec<Device>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<(ShardId, Option<DeviceId>)>,
}

/// Limits of one read of a stream.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    pub messages_max: u32,
    pub bytes_max: u32,
    /// How long to wait for a first message, in milliseconds.
    pub wait_ms: u32,
}

/// A shard's stream.
#[derive(Debug, Clone)]
pub struct StreamState {
    pub shard: ShardId,
    pub first: Offset,
    pub next: Offset,
    pub cursors: Vec<(String, Offset)>,
    pub device_count: u64,
}

/// What a cluster is made from.
#[derive(Debug, Clone)]
pub struct Initialization {
    pub members: Vec<(NodeId, Member)>,
    pub shard_count: u32,
    pub replication_factor: u8,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    pub meta: Meta,
    pub answered_by: NodeId,
    pub nodes: Vec<NodeStatus>,
    pub shards: Vec<ShardStatus>,
}

#[derive(Debug, Clone)]
pub struct NodeStatus {
    pub node: NodeId,
    pub reachable: bool,
    pub version: String,
    pub sessions: u32,
    pub started: LogTime,
    pub disk_free_bytes: u64,
    pub problems: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ShardStatus {
    /// `None` for the meta group.
    pub shard: Option<ShardId>,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub committed_index: u64,
    /// Node, matched index if the leader knows it, what is wrong with it.
    pub replicas: Vec<(NodeId, Option<u64>, String)>,
    pub first_offset: Offset,
    pub next_offset: Offset,
    pub device_count: u64,
}

impl Cluster {
    // ------------------------------------------------------------ devices' side

    /// The identity to check a credential against, as the shard's leader has applied it. Not linearizable: what is
    /// done under the credential names the etag, and apply refuses it if the identity has changed since.
    pub async fn credentials(&self, device: &DeviceId) -> Result<Option<Device>, Error> {
        let _ = device;
        todo!()
    }

    /// Makes a connection the live one of its device and ends the former. Success: the epoch is durable on a majority.
    pub async fn open_session(&self, request: OpenSession) -> Result<Session, Error> {
        let _ = request;
        todo!()
    }

    // ------------------------------------------------------------ registry

    /// Success of this and of every other write: durable on a majority of the shard's replicas.
    pub async fn create_device(&self, device: DeviceId, spec: DeviceSpec) -> Result<Device, Error> {
        let _ = (device, spec);
        todo!()
    }

    /// Linearizable.
    pub async fn device(&self, device: &DeviceId) -> Result<Device, Error> {
        let _ = device;
        todo!()
    }

    /// `limit`: 1 to 1000.
    pub async fn devices(
        &self,
        from: Option<(ShardId, Option<DeviceId>)>,
        limit: u32,
    ) -> Result<DevicePage, Error> {
        let _ = (from, limit);
        todo!()
    }

    pub async fn update_device(
        &self,
        device: &DeviceId,
        if_match: Condition,
        update: DeviceUpdate,
    ) -> Result<Device, Error> {
        let _ = (device, if_match, update);
        todo!()
    }

    pub async fn delete_device(&self, device: &DeviceId, if_match: Condition) -> Result<(), Error> {
        let _ = (device, if_match);
        todo!()
    }

    // ------------------------------------------------------------ twins

    /// Linearizable: sees every write that was acknowledged before the call (P2).
    pub async fn twin(&self, device: &DeviceId) -> Result<Twin, Error> {
        let _ = device;
        todo!()
    }

    pub async fn update_twin(&self, device: &DeviceId, change: TwinChange) -> Result<Twin, Error> {
        let _ = (device, change);
        todo!()
    }

    // ------------------------------------------------------------ streams

    /// Messages from an offset on, in order, without holes.
    pub async fn read_stream(
        &self,
        shard: ShardId,
        from: Offset,
        limits: ReadLimits,
    ) -> Result<StreamPage, Error> {
        let _ = (shard, from, limits);
        todo!()
    }

    /// The first offset whose message was appended at `at` or later; the end of the stream if there is none.
    pub async fn offset_at(&self, shard: ShardId, at: LogTime) -> Result<Offset, Error> {
        let _ = (shard, at);
        todo!()
    }

    pub async fn stream_state(&self, shard: ShardId) -> Result<StreamState, Error> {
        let _ = shard;
        todo!()
    }

    pub async fn commit_cursor(
        &self,
        shard: ShardId,
        group: String,
        next: Offset,
    ) -> Result<Offset, Error> {
        let _ = (shard, group, next);
        todo!()
    }

    pub async fn seek_cursor(
        &self,
        shard: ShardId,
        group: String,
        next: Offset,
    ) -> Result<Offset, Error> {
        let _ = (shard, group, next);
        todo!()
    }

    pub async fn delete_cursor(&self, shard: ShardId, group: String) -> Result<(), Error> {
        let _ = (shard, group);
        todo!()
    }

    /// The messages of one device between two times, oldest first, after `after` if given. `limit`: 1 to 1000.
    pub async fn history(
        &self,
        device: &DeviceId,
        from: LogTime,
        until: LogTime,
        after: Option<Offset>,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, Error> {
        let _ = (device, from, until, after, limit);
        todo!()
    }

    /// What is committed from now on anywhere in the cluster, best effort: a slow reader misses some and is told how
    /// many. A node holds one of these and fans it out through its bus.
    pub fn live(&self) -> mpsc::Receiver<Live> {
        todo!()
    }

    // ------------------------------------------------------------ the cluster itself

    /// The number of shards and more; `None` before the cluster is initialized.
    pub fn meta(&self) -> Option<std::sync::Arc<Meta>> {
        todo!()
    }

    pub async fn initialize(
        &self,
        initialization: Initialization,
    ) -> Result<std::sync::Arc<Meta>, Error> {
        let _ = initialization;
        todo!()
    }

    pub async fn put_policy(&self, name: String, policy: Policy) -> Result<(), Error> {
        let _ = (name, policy);
        todo!()
    }

    pub async fn delete_policy(&self, name: String) -> Result<(), Error> {
        let _ = name;
        todo!()
    }

    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        todo!()
    }

    /// Whether this node can serve: it knows the cluster, and every group it hosts has a leader. The text says what is
    /// missing.
    pub fn ready(&self) -> Result<(), String> {
        todo!()
    }

    /// Ends sessions, stops the groups, syncs. `deadline_ms` bounds it.
    pub async fn stop(&self, deadline_ms: u64) {
        let _ = deadline_ms;
        todo!()
    }
}
