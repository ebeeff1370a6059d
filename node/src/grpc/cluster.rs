//! `drover.admin.v1.Cluster`: parse, call, answer.

use drover_cluster::core::meta::{Meta, MetaRefusal};
use drover_cluster::{Cluster, Error};
use drover_proto::admin::cluster_server::Cluster as ClusterMethods;
use drover_proto::admin::{
    self, ClusterStatus, DeletePolicyRequest, DeletePolicyResponse, GetStatusRequest,
    InitializeRequest, InitializeResponse, ListPoliciesRequest, ListPoliciesResponse,
    PutPolicyRequest,
};
use tonic::{Request, Response, Status};

use super::convert::cluster;
use super::status::{self, Invalid};

#[derive(Debug, Clone)]
pub(crate) struct ClusterService {
    pub(crate) cluster: Cluster,
}

#[tonic::async_trait]
impl ClusterMethods for ClusterService {
    async fn initialize(
        &self,
        request: Request<InitializeRequest>,
    ) -> Result<Response<InitializeResponse>, Status> {
        if let Some(meta) = self.cluster.meta() {
            let cluster_id = meta.cluster_id.clone();
            return Err(status::of(MetaRefusal::AlreadyInitialized { cluster_id }.into()));
        }
        let initialization =
            cluster::initialization(request.into_inner()).map_err(status::invalid)?;
        let meta = self.cluster.initialize(initialization).await.map_err(status::of)?;
        let policies = policies(&meta);
        Ok(Response::new(InitializeResponse { cluster_id: meta.cluster_id.clone(), policies }))
    }

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let status = self.cluster.status().await.map_err(status::of)?;
        Ok(Response::new(cluster::status(&status)))
    }

    async fn list_policies(
        &self,
        _: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let meta = self.cluster.meta().ok_or_else(|| status::of(Error::NotInitialized))?;
        Ok(Response::new(ListPoliciesResponse { policies: policies(&meta) }))
    }

    async fn put_policy(
        &self,
        request: Request<PutPolicyRequest>,
    ) -> Result<Response<admin::Policy>, Status> {
        let given = request.into_inner().policy;
        let given =
            given.ok_or_else(|| status::invalid(Invalid::new("policy", "it is missing")))?;
        let meta = self.cluster.meta().ok_or_else(|| status::of(Error::NotInitialized))?;
        let current = meta.policies.get(&given.name);
        let (name, policy) = cluster::policy(&given, current).map_err(status::invalid)?;
        // This node may know an older state than others: a key that was replaced must not come back by that.
        let keeps_keys = given.primary_key.is_empty() || given.secondary_key.is_empty();
        let expected = keeps_keys.then_some(meta.version);
        let put = self.cluster.put_policy(name.clone(), policy.clone(), expected).await;
        put.map_err(status::of)?;
        Ok(Response::new(cluster::policy_answer(&name, &policy)))
    }

    async fn delete_policy(
        &self,
        request: Request<DeletePolicyRequest>,
    ) -> Result<Response<DeletePolicyResponse>, Status> {
        self.cluster.delete_policy(request.into_inner().name).await.map_err(status::of)?;
        Ok(Response::new(DeletePolicyResponse {}))
    }
}

fn policies(meta: &Meta) -> Vec<admin::Policy> {
    meta.policies.iter().map(|(name, policy)| cluster::policy_answer(name, policy)).collect()
}
