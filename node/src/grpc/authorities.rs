//! `drover.admin.v1.Authorities`: parse, call, answer.

use std::sync::Arc;

use drover_cluster::core::authority::{Authority, AuthorityChange, Possession};
use drover_cluster::core::device::Status as AuthorityStatus;
use drover_cluster::core::meta::{Meta, MetaRefusal};
use drover_cluster::{Cluster, Error};
use drover_proto::admin::authorities_server::Authorities;
use drover_proto::admin::{
    self, CreateAuthorityRequest, DeleteAuthorityRequest, DeleteAuthorityResponse,
    GenerateVerificationCodeRequest, GetAuthorityRequest, ListAuthoritiesRequest,
    ListAuthoritiesResponse, SetAuthorityStatusRequest, VerifyAuthorityRequest,
};
use tonic::{Request, Response, Status};

use super::convert::authorities;
use super::status;
use crate::clock;
use crate::identity::certificate;

#[derive(Debug, Clone)]
pub(crate) struct AuthoritiesService {
    pub(crate) cluster: Cluster,
}

#[tonic::async_trait]
impl Authorities for AuthoritiesService {
    async fn create_authority(
        &self,
        request: Request<CreateAuthorityRequest>,
    ) -> Result<Response<admin::Authority>, Status> {
        let CreateAuthorityRequest { name, certificate_pem } = request.into_inner();
        let certificate = authorities::certificate(&certificate_pem).map_err(status::invalid)?;
        certificate::check_authority(&certificate, clock::unix_ms() / 1_000)
            .map_err(|unfit| status::invalid(authorities::unfit(&unfit)))?;
        let code = authorities::new_code();
        self.change(name, AuthorityChange::Create { certificate, code }).await
    }

    async fn get_authority(
        &self,
        request: Request<GetAuthorityRequest>,
    ) -> Result<Response<admin::Authority>, Status> {
        self.answer(&request.get_ref().name)
    }

    async fn list_authorities(
        &self,
        _: Request<ListAuthoritiesRequest>,
    ) -> Result<Response<ListAuthoritiesResponse>, Status> {
        let meta = self.meta()?;
        let authorities =
            meta.authorities.iter().map(|(name, authority)| authorities::answer(name, authority));
        Ok(Response::new(ListAuthoritiesResponse { authorities: authorities.collect() }))
    }

    async fn generate_verification_code(
        &self,
        request: Request<GenerateVerificationCodeRequest>,
    ) -> Result<Response<admin::Authority>, Status> {
        let change = AuthorityChange::ReplaceCode { code: authorities::new_code() };
        self.change(request.into_inner().name, change).await
    }

    async fn verify_authority(
        &self,
        request: Request<VerifyAuthorityRequest>,
    ) -> Result<Response<admin::Authority>, Status> {
        let VerifyAuthorityRequest { name, certificate_pem } = request.into_inner();
        let proof = authorities::certificate(&certificate_pem).map_err(status::invalid)?;
        let meta = self.meta()?;
        let authority = existing(&meta, &name)?;
        let Possession::Unproven { code } = &authority.possession else {
            return Err(status::of(MetaRefusal::AuthorityIsProven { name }.into()));
        };
        let now_s = clock::unix_ms() / 1_000;
        certificate::check_possession(&authority.certificate, code, &proof, now_s)
            .map_err(|unfit| status::invalid(authorities::unfit(&unfit)))?;
        self.change(name, AuthorityChange::Prove { code: code.clone() }).await
    }

    async fn set_authority_status(
        &self,
        request: Request<SetAuthorityStatusRequest>,
    ) -> Result<Response<admin::Authority>, Status> {
        let SetAuthorityStatusRequest { name, enabled } = request.into_inner();
        let status = if enabled { AuthorityStatus::Enabled } else { AuthorityStatus::Disabled };
        self.change(name, AuthorityChange::SetStatus(status)).await
    }

    async fn delete_authority(
        &self,
        request: Request<DeleteAuthorityRequest>,
    ) -> Result<Response<DeleteAuthorityResponse>, Status> {
        let delete = AuthorityChange::Delete;
        let name = request.into_inner().name;
        self.cluster.change_authority(name, delete).await.map_err(status::of)?;
        Ok(Response::new(DeleteAuthorityResponse {}))
    }
}

impl AuthoritiesService {
    /// Answers with the authority as it is after the change, or after one that has followed since.
    async fn change(
        &self,
        name: String,
        change: AuthorityChange,
    ) -> Result<Response<admin::Authority>, Status> {
        self.cluster.change_authority(name.clone(), change).await.map_err(status::of)?;
        self.answer(&name)
    }

    fn answer(&self, name: &str) -> Result<Response<admin::Authority>, Status> {
        let meta = self.meta()?;
        Ok(Response::new(authorities::answer(name, existing(&meta, name)?)))
    }

    fn meta(&self) -> Result<Arc<Meta>, Status> {
        self.cluster.meta().ok_or_else(|| status::of(Error::NotInitialized))
    }
}

fn existing<'a>(meta: &'a Meta, name: &str) -> Result<&'a Authority, Status> {
    let not_found = || MetaRefusal::AuthorityNotFound { name: name.to_owned() };
    meta.authorities.get(name).ok_or_else(|| status::of(not_found().into()))
}
