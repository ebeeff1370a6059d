//! Devices through the cluster: their identities, connections and twins.

use drover_core::change::{Condition, DeviceChange, DeviceSpec, Done, Refusal, TwinUpdate};
use drover_core::device::{Authentication, Device, Status};
use drover_core::document::Object;
use drover_core::ids::{DeviceId, GenerationId, ShardId, Version};
use drover_core::twin::Twin;

use super::cluster::{Cluster, check_limit, unexpected};
use super::error::Error;
use super::session::{OpenSession, Session};
use crate::wire::request::{Answer, Request};

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

impl Cluster {
    /// The identity to check a credential against, as the shard's leader has applied it. Not linearizable: what is
    /// done under the credential names the etag, and apply refuses it if the identity has changed since.
    pub async fn credentials(&self, device: &DeviceId) -> Result<Option<Device>, Error> {
        self.read_device(device, false).await
    }

    /// Makes a connection the live one of its device and ends the former. Success: the epoch is durable on a majority.
    pub async fn open_session(&self, request: OpenSession) -> Result<Session, Error> {
        if self.shared.departure().is_some() || self.shared.is_for_newer(&request.proven.device) {
            return Err(Error::Stopping);
        }
        Session::open(self, request).await
    }

    // ------------------------------------------------------------ registry

    /// Success of this and of every other write: durable on a majority of the shard's replicas.
    pub async fn create_device(&self, device: DeviceId, spec: DeviceSpec) -> Result<Device, Error> {
        let generation = GenerationId::new(self.shared.draw());
        let create = DeviceChange::Create { generation, spec };
        self.changed_device(&device, create).await
    }

    /// Linearizable.
    pub async fn device(&self, device: &DeviceId) -> Result<Device, Error> {
        let found = self.read_device(device, true).await?;
        found.ok_or_else(|| Refusal::not_found(device).into())
    }

    async fn read_device(
        &self,
        device: &DeviceId,
        linearizable: bool,
    ) -> Result<Option<Device>, Error> {
        let shard = self.shard_of(device)?;
        let answer =
            self.read(shard, Request::Device { device: device.clone(), linearizable }).await?;
        let Answer::Device(device) = answer else {
            return Err(unexpected(shard));
        };
        Ok(device.map(|device| *device))
    }

    /// `limit`: 1 to 1000.
    pub async fn devices(
        &self,
        from: Option<(ShardId, Option<DeviceId>)>,
        limit: u32,
    ) -> Result<DevicePage, Error> {
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        let limit = check_limit(limit)? as usize;
        let (first, mut after) = match from {
            Some((shard, after)) => (Some(shard), after),
            None => (None, None),
        };
        let mut page = DevicePage { devices: Vec::new(), next: None };
        for shard in meta.shard_count.shards().skip_while(|shard| Some(*shard) < first) {
            if page.devices.len() == limit {
                page.next = Some((shard, None));
                break;
            }
            let left = (limit - page.devices.len()) as u32;
            let request = Request::Devices { after: after.take(), limit: left };
            let Answer::Devices { devices, more } = self.read(shard, request).await? else {
                return Err(unexpected(shard));
            };
            page.devices.extend(devices);
            if more {
                page.next = Some((shard, page.devices.last().map(|device| device.id.clone())));
                break;
            }
        }
        Ok(page)
    }

    /// All modules of a device (50 at most), in the order of their ids. Linearizable. A module is created, read, updated and
    /// deleted as a device is, under the id that names it.
    pub async fn modules(&self, device: &DeviceId) -> Result<Vec<Device>, Error> {
        let shard = self.shard_of(device)?;
        let Answer::Devices { devices, .. } =
            self.read(shard, Request::Modules(device.clone())).await?
        else {
            return Err(unexpected(shard));
        };
        Ok(devices)
    }

    pub async fn update_device(
        &self,
        device: &DeviceId,
        if_match: Condition,
        update: DeviceUpdate,
    ) -> Result<Device, Error> {
        let DeviceUpdate { status, status_reason, authentication } = update;
        let update = DeviceChange::Update { if_match, status, status_reason, authentication };
        self.changed_device(device, update).await
    }

    async fn changed_device(
        &self,
        device: &DeviceId,
        change: DeviceChange,
    ) -> Result<Device, Error> {
        let answer = self.change_device(device, change).await?;
        let Done::Device(device) = answer else {
            return Err(unexpected(self.shard_of(device)?));
        };
        Ok(*device)
    }

    pub async fn delete_device(&self, device: &DeviceId, if_match: Condition) -> Result<(), Error> {
        self.change_device(device, DeviceChange::Delete { if_match }).await.map(drop)
    }

    // ------------------------------------------------------------ twins

    /// Linearizable: sees every write that was acknowledged before the call (P2).
    pub async fn twin(&self, device: &DeviceId) -> Result<Twin, Error> {
        let shard = self.shard_of(device)?;
        let answer = self.read(shard, Request::Twin(device.clone())).await?;
        let Answer::Twin(twin) = answer else {
            return Err(unexpected(shard));
        };
        Ok(*twin)
    }

    pub async fn update_twin(&self, device: &DeviceId, change: TwinChange) -> Result<Twin, Error> {
        let TwinChange { if_match, expected_desired, mode, tags, desired } = change;
        let update = DeviceChange::UpdateTwin { if_match, expected_desired, mode, tags, desired };
        let answer = self.change_device(device, update).await?;
        let Done::Twin(twin) = answer else {
            return Err(unexpected(self.shard_of(device)?));
        };
        Ok(*twin)
    }
}
