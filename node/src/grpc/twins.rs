//! `drover.admin.v1.Twins`: parse, call, answer.

use drover_cluster::Cluster;
use drover_cluster::core::change::TwinUpdate;
use drover_proto::admin::twins_server::Twins;
use drover_proto::admin::{self, GetTwinRequest, UpdateTwinRequest};
use tonic::{Request, Response, Status};

use super::convert::{self, twins};
use super::status;

#[derive(Debug, Clone)]
pub(crate) struct TwinsService {
    pub(crate) cluster: Cluster,
}

#[tonic::async_trait]
impl Twins for TwinsService {
    async fn get_twin(
        &self,
        request: Request<GetTwinRequest>,
    ) -> Result<Response<admin::Twin>, Status> {
        let GetTwinRequest { device_id, module_id } = request.get_ref();
        let device = convert::identity(device_id, module_id).map_err(status::invalid)?;
        let twin = self.cluster.twin(&device).await.map_err(status::of)?;
        Ok(Response::new(twins::twin(&device, &twin)))
    }

    async fn patch_twin(
        &self,
        request: Request<UpdateTwinRequest>,
    ) -> Result<Response<admin::Twin>, Status> {
        self.update(request.into_inner(), TwinUpdate::Merge).await
    }

    async fn replace_twin(
        &self,
        request: Request<UpdateTwinRequest>,
    ) -> Result<Response<admin::Twin>, Status> {
        self.update(request.into_inner(), TwinUpdate::Replace).await
    }
}

impl TwinsService {
    async fn update(
        &self,
        request: UpdateTwinRequest,
        mode: TwinUpdate,
    ) -> Result<Response<admin::Twin>, Status> {
        let update = twins::UpdateTwin::from_request(request, mode).map_err(status::invalid)?;
        let twin = self.cluster.update_twin(&update.device, update.change).await;
        let twin = twin.map_err(status::of)?;
        Ok(Response::new(twins::twin(&update.device, &twin)))
    }
}
