//! `drover.admin.v1.Devices`: parse, call, answer.

use drover_cluster::actors::cluster::DeviceUpdate;
use drover_cluster::core::change::{Condition, Refusal};
use drover_cluster::core::device::Device;
use drover_cluster::core::ids::DeviceId;
use drover_cluster::core::message::Live;
use drover_cluster::{Cluster, Error};
use drover_proto::admin::devices_server::Devices;
use drover_proto::admin::{
    self, BulkCreateDevicesRequest, BulkCreateDevicesResponse, CreateDeviceRequest,
    DeleteDeviceRequest, DeleteDeviceResponse, GetDeviceRequest, ListDevicesRequest,
    ListDevicesResponse, RotateKeysRequest, UpdateDeviceRequest, WatchDevicesRequest,
    WatchDevicesResponse,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::convert::{self, devices};
use super::guard::{Guard, Readers};
use super::status::{self, Invalid};
use crate::bus::Senders;

/// How many devices one call may create (Azure IoT Hub's limit for bulk calls).
const BULK_MAX: usize = 100;
/// How many of them are under way at a time: enough to share an fsync, few enough to leave room for others.
const BULK_CONCURRENCY: usize = 32;
/// How often a change that depends on the identity as it is starts again when the identity changes meanwhile.
const ATTEMPTS_MAX: u32 = 4;

#[derive(Debug, Clone)]
pub(crate) struct DevicesService {
    pub(crate) cluster: Cluster,
    pub(crate) readers: Readers,
}

#[tonic::async_trait]
impl Devices for DevicesService {
    type WatchDevicesStream = BoxStream<'static, Result<WatchDevicesResponse, Status>>;

    async fn watch_devices(
        &self,
        request: Request<WatchDevicesRequest>,
    ) -> Result<Response<Self::WatchDevicesStream>, Status> {
        let guard = self.readers.guard(&request)?;
        let WatchDevicesRequest { device_id, module_id } = request.into_inner();
        let wanted = Senders::parse(&device_id, &module_id).map_err(status::invalid)?;
        let watch = Watch { wanted, live: self.cluster.live_events() };
        let responses = stream::try_unfold((watch, guard), |(mut watch, guard)| async move {
            let response = guard.unless_stopped(watch.next(&guard)).await?;
            Ok(response.map(|response| (response, (watch, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn create_device(
        &self,
        request: Request<CreateDeviceRequest>,
    ) -> Result<Response<admin::Device>, Status> {
        self.create(request.into_inner()).await.map(Response::new)
    }

    async fn bulk_create_devices(
        &self,
        request: Request<BulkCreateDevicesRequest>,
    ) -> Result<Response<BulkCreateDevicesResponse>, Status> {
        let requests = request.into_inner().devices;
        if requests.is_empty() || requests.len() > BULK_MAX {
            let problem = format!("give 1 to {BULK_MAX} devices, not {}", requests.len());
            return Err(status::invalid(Invalid::new("devices", problem)));
        }
        let results = stream::iter(requests).map(|request| self.create_one_of_many(request));
        let results = results.buffered(BULK_CONCURRENCY).collect().await;
        Ok(Response::new(BulkCreateDevicesResponse { results }))
    }

    async fn get_device(
        &self,
        request: Request<GetDeviceRequest>,
    ) -> Result<Response<admin::Device>, Status> {
        let id = convert::device_id("id", &request.get_ref().id).map_err(status::invalid)?;
        let device = self.cluster.device(&id).await.map_err(status::of)?;
        Ok(Response::new(devices::device(device)))
    }

    async fn list_devices(
        &self,
        request: Request<ListDevicesRequest>,
    ) -> Result<Response<ListDevicesResponse>, Status> {
        let request = request.get_ref();
        let limit = convert::page_size(request.page_size).map_err(status::invalid)?;
        let shards = super::shard_count(&self.cluster)?;
        let from = devices::page_start(&request.page_token, shards).map_err(status::invalid)?;
        let page = self.cluster.devices(from, limit).await.map_err(status::of)?;
        Ok(Response::new(devices::page(page)))
    }

    async fn update_device(
        &self,
        request: Request<UpdateDeviceRequest>,
    ) -> Result<Response<admin::Device>, Status> {
        let update =
            devices::UpdateDevice::try_from(request.into_inner()).map_err(status::invalid)?;
        let device = update_identity(&self.cluster, &update).await?;
        Ok(Response::new(devices::device(device)))
    }

    async fn rotate_keys(
        &self,
        request: Request<RotateKeysRequest>,
    ) -> Result<Response<admin::Device>, Status> {
        let rotate =
            devices::RotateKeys::try_from(request.into_inner()).map_err(status::invalid)?;
        let device = rotate_keys(&self.cluster, &rotate).await?;
        Ok(Response::new(devices::device(device)))
    }

    async fn delete_device(
        &self,
        request: Request<DeleteDeviceRequest>,
    ) -> Result<Response<DeleteDeviceResponse>, Status> {
        let request = request.get_ref();
        let id = convert::device_id("id", &request.id).map_err(status::invalid)?;
        let if_match =
            convert::condition("if_match", &request.if_match).map_err(status::invalid)?;
        self.cluster.delete_device(&id, if_match).await.map_err(status::of)?;
        Ok(Response::new(DeleteDeviceResponse {}))
    }
}

impl DevicesService {
    async fn create(&self, request: CreateDeviceRequest) -> Result<admin::Device, Status> {
        let create = devices::CreateDevice::try_from(request).map_err(status::invalid)?;
        let device = self.cluster.create_device(create.id, create.spec).await;
        device.map(devices::device).map_err(status::of)
    }

    async fn create_one_of_many(&self, request: CreateDeviceRequest) -> admin::BulkResult {
        let id = request.id.clone();
        let result = match self.create(request).await {
            Ok(device) => admin::bulk_result::Result::Device(device),
            Err(refused) => admin::bulk_result::Result::Error(status::bulk_error(&refused)),
        };
        admin::BulkResult { id, result: Some(result) }
    }
}

/// Changes the identity of a device or of a module.
pub(super) async fn update_identity(
    cluster: &Cluster,
    update: &devices::UpdateDevice,
) -> Result<Device, Status> {
    if !update.is_complete() {
        let change = |current: &Device| update.over(Some(current));
        return change_current(cluster, &update.id, update.if_match, change).await;
    }
    let change = update.over(None).map_err(status::invalid)?;
    cluster.update_device(&update.id, update.if_match, change).await.map_err(status::of)
}

/// Replaces keys of a device or of a module.
pub(super) async fn rotate_keys(
    cluster: &Cluster,
    rotate: &devices::RotateKeys,
) -> Result<Device, Status> {
    let change = |current: &Device| rotate.over(current);
    change_current(cluster, &rotate.id, rotate.if_match, change).await
}

/// Changes an identity in a way that depends on how it is: read it, then change it on the condition that it still is so. A
/// caller without a condition of its own never sees that of this function, short of a storm of changes.
async fn change_current(
    cluster: &Cluster,
    id: &DeviceId,
    if_match: Condition,
    change: impl Fn(&Device) -> Result<DeviceUpdate, Invalid>,
) -> Result<Device, Status> {
    let mut attempt = 1;
    loop {
        let current = cluster.device(id).await.map_err(status::of)?;
        if let Condition::Match(expected) = if_match
            && expected != current.etag
        {
            return Err(status::of(Refusal::EtagMismatch { current: current.etag }.into()));
        }
        let update = change(&current).map_err(status::invalid)?;
        let unchanged = Condition::Match(current.etag);
        match cluster.update_device(id, unchanged, update).await {
            Ok(device) => return Ok(device),
            Err(Error::Refused(Refusal::EtagMismatch { .. }))
                if if_match == Condition::Any && attempt < ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            Err(error) => return Err(status::of(error)),
        }
    }
}

/// What happens to some devices, for one reader.
struct Watch {
    wanted: Senders,
    live: mpsc::Receiver<Live>,
}

impl Watch {
    /// The next events. Wakes up now and then to look whether the caller may still listen.
    async fn next(&mut self, guard: &Guard) -> Result<Option<WatchDevicesResponse>, Status> {
        loop {
            match guard.next(self.live.recv()).await? {
                Some(Some(Live::Event(event))) => {
                    let event = devices::event(event);
                    if self.wanted.include(&event.device_id, &event.module_id) {
                        return Ok(Some(WatchDevicesResponse { events: vec![event], missed: 0 }));
                    }
                }
                Some(Some(Live::Missed(missed))) if missed > 0 => {
                    return Ok(Some(WatchDevicesResponse { events: Vec::new(), missed }));
                }
                Some(None) => return Ok(None),
                Some(Some(Live::Missed(_) | Live::Messages(_))) | None => {}
            }
        }
    }
}
