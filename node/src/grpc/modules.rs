//! `drover.admin.v1.Modules`: parse, call, answer.

use drover_cluster::Cluster;
use drover_proto::admin::modules_server::Modules;
use drover_proto::admin::{
    self, CreateModuleRequest, DeleteModuleRequest, DeleteModuleResponse, GetModuleRequest,
    ListModulesRequest, ListModulesResponse, RotateModuleKeysRequest, UpdateModuleRequest,
};
use tonic::{Request, Response, Status};

use super::convert::devices::{CreateDevice, RotateKeys, UpdateDevice};
use super::convert::{self, modules};
use super::devices::{rotate_keys, update_identity};
use super::status;

#[derive(Debug, Clone)]
pub(crate) struct ModulesService {
    pub(crate) cluster: Cluster,
}

#[tonic::async_trait]
impl Modules for ModulesService {
    async fn create_module(
        &self,
        request: Request<CreateModuleRequest>,
    ) -> Result<Response<admin::Module>, Status> {
        let create = CreateDevice::try_from(request.into_inner()).map_err(status::invalid)?;
        let module = self.cluster.create_device(create.id, create.spec).await;
        Ok(Response::new(modules::module(module.map_err(status::of)?)))
    }

    async fn get_module(
        &self,
        request: Request<GetModuleRequest>,
    ) -> Result<Response<admin::Module>, Status> {
        let GetModuleRequest { device_id, module_id } = request.get_ref();
        let id = modules::module_id(device_id, module_id).map_err(status::invalid)?;
        let module = self.cluster.device(&id).await.map_err(status::of)?;
        Ok(Response::new(modules::module(module)))
    }

    async fn list_modules(
        &self,
        request: Request<ListModulesRequest>,
    ) -> Result<Response<ListModulesResponse>, Status> {
        let id = &request.get_ref().device_id;
        let device = convert::device_id("device_id", id).map_err(status::invalid)?;
        let modules = self.cluster.modules(&device).await.map_err(status::of)?;
        let modules = modules.into_iter().map(modules::module).collect();
        Ok(Response::new(ListModulesResponse { modules }))
    }

    async fn update_module(
        &self,
        request: Request<UpdateModuleRequest>,
    ) -> Result<Response<admin::Module>, Status> {
        let update = UpdateDevice::try_from(request.into_inner()).map_err(status::invalid)?;
        let module = update_identity(&self.cluster, &update).await?;
        Ok(Response::new(modules::module(module)))
    }

    async fn rotate_module_keys(
        &self,
        request: Request<RotateModuleKeysRequest>,
    ) -> Result<Response<admin::Module>, Status> {
        let rotate = RotateKeys::try_from(request.into_inner()).map_err(status::invalid)?;
        let module = rotate_keys(&self.cluster, &rotate).await?;
        Ok(Response::new(modules::module(module)))
    }

    async fn delete_module(
        &self,
        request: Request<DeleteModuleRequest>,
    ) -> Result<Response<DeleteModuleResponse>, Status> {
        let DeleteModuleRequest { device_id, module_id, if_match } = request.get_ref();
        let id = modules::module_id(device_id, module_id).map_err(status::invalid)?;
        let if_match = convert::condition("if_match", if_match).map_err(status::invalid)?;
        self.cluster.delete_device(&id, if_match).await.map_err(status::of)?;
        Ok(Response::new(DeleteModuleResponse {}))
    }
}
