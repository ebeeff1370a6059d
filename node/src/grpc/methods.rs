//! `drover.admin.v1.Methods`: parse, call, answer.

use drover_cluster::Cluster;
use drover_proto::admin::methods_server::Methods;
use drover_proto::admin::{InvokeMethodRequest, InvokeMethodResponse};
use tonic::{Request, Response, Status};

use super::convert::methods::{self, Invoke};
use super::status;

#[derive(Debug, Clone)]
pub(crate) struct MethodsService {
    pub(crate) cluster: Cluster,
}

#[tonic::async_trait]
impl Methods for MethodsService {
    async fn invoke_method(
        &self,
        request: Request<InvokeMethodRequest>,
    ) -> Result<Response<InvokeMethodResponse>, Status> {
        let Invoke { device, call } =
            Invoke::try_from(request.into_inner()).map_err(status::invalid)?;
        let response = self.cluster.invoke_method(&device, call).await.map_err(status::of)?;
        Ok(Response::new(methods::response(&response)))
    }
}
