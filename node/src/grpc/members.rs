//! `drover.admin.v1.Members`: parse, call, answer.

use drover_cluster::core::ids::{NodeId, ShardId};
use drover_cluster::core::membership::Signer;
use drover_cluster::{Cluster, Error};
use drover_proto::admin::members_server::Members;
use drover_proto::admin::{
    CancelMovesRequest, CancelMovesResponse, CreateJoinTokenRequest, CreateJoinTokenResponse,
    DrainNodeRequest, DrainNodeResponse, FinishUpgradeRequest, FinishUpgradeResponse,
    HoldUpgradeRequest, HoldUpgradeResponse, JoinRequest, JoinResponse, JoinToken,
    PauseMovesRequest, PauseMovesResponse, RebuildReplicaRequest, RebuildReplicaResponse,
    RemoveNodeRequest, RemoveNodeResponse, RenameClusterRequest, RenameClusterResponse,
    ResumeMovesRequest, ResumeMovesResponse, UndrainNodeRequest, UndrainNodeResponse,
};
use rand::RngCore;
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use super::auth::Caller;
use super::convert::members;
use super::{convert, status};
use crate::tls::signer;
use crate::{clock, join};

/// Not to be guessed.
const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 8;
/// A node that joins asks one after the other; a few of them are enough.
const CONTACTS_MAX: usize = 16;

#[derive(Debug, Clone)]
pub(crate) struct MembersService {
    pub(crate) cluster: Cluster,
    /// Whose certificates this node accepts from peers by its configuration.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
}

#[tonic::async_trait]
impl Members for MembersService {
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let ttl_ms = members::ttl_ms(request.into_inner()).map_err(status::invalid)?;
        let signer = self.signer().await?;
        let meta = self.cluster.meta().ok_or_else(|| status::of(Error::NotInitialized))?;
        let (id, secret) = (random(ID_BYTES), random(SECRET_BYTES));
        let expires = self.cluster.now().plus_ms(ttl_ms);
        let (id, digest) = (hex::encode(id), signer::digest(&secret));
        let added = self.cluster.add_join_token(id.clone(), digest, expires).await;
        added.map_err(status::of)?;
        let contacts = meta.members.iter().take(CONTACTS_MAX).map(members::contact).collect();
        let token = JoinToken { id, secret, authorities: self.trusted(&signer), contacts };
        let (token, expires) = (join::token::encode(&token), Some(convert::timestamp(expires)));
        Ok(Response::new(CreateJoinTokenResponse { token, expires }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let Some(Caller::Joining { token }) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::unauthenticated("a node joins with a join token"));
        };
        let request = request.into_inner();
        members::check_fit(&request, clock::unix_ms())?;
        let joining = members::joining(token, &request).map_err(status::invalid)?;
        let signer = self.signer().await?;
        // Before the node is a member: a key that cannot be signed must not use up the token.
        let sign = |node| {
            let signed = signer::sign(&signer, node, &request.public_key, clock::unix_ms() / 1_000);
            let problem = |error: crate::tls::Error| status::Invalid::new("public_key", error);
            signed.map_err(|error| status::invalid(problem(error)))
        };
        sign(NodeId::new(1, 0))?;
        let node = self.cluster.join(joining).await.map_err(status::of)?;
        let meta = self.cluster.meta().ok_or_else(|| status::of(Error::NotInitialized))?;
        Ok(Response::new(JoinResponse {
            cluster_id: meta.cluster_id.clone(),
            number: node.number(),
            generation: node.generation().into(),
            certificate: sign(node)?.to_vec(),
            authorities: self.trusted(&signer),
        }))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        let DrainNodeRequest { number, keep_replicas } = request.into_inner();
        let node = self.cluster.member(number).map_err(status::of)?;
        let drained = if keep_replicas {
            self.cluster.drain_for_restart(node).await
        } else {
            self.cluster.drain(node).await
        };
        drained.map_err(status::of)?;
        Ok(Response::new(DrainNodeResponse {}))
    }

    async fn undrain_node(
        &self,
        request: Request<UndrainNodeRequest>,
    ) -> Result<Response<UndrainNodeResponse>, Status> {
        let node = self.cluster.member(request.into_inner().number).map_err(status::of)?;
        self.cluster.undrain(node).await.map_err(status::of)?;
        Ok(Response::new(UndrainNodeResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let node = self.cluster.member(request.into_inner().number).map_err(status::of)?;
        self.cluster.remove(node).await.map_err(status::of)?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn rebuild_replica(
        &self,
        request: Request<RebuildReplicaRequest>,
    ) -> Result<Response<RebuildReplicaResponse>, Status> {
        let RebuildReplicaRequest { number, shard } = request.into_inner();
        let node = self.cluster.member(number).map_err(status::of)?;
        let shard = ShardId::new(shard, super::shard_count(&self.cluster)?)
            .ok_or_else(|| status::invalid(status::Invalid::new("shard", "there is none")))?;
        self.cluster.rebuild(node, shard).await.map_err(status::of)?;
        Ok(Response::new(RebuildReplicaResponse {}))
    }

    async fn hold_upgrade(
        &self,
        _: Request<HoldUpgradeRequest>,
    ) -> Result<Response<HoldUpgradeResponse>, Status> {
        self.cluster.hold_upgrade().await.map_err(status::of)?;
        Ok(Response::new(HoldUpgradeResponse {}))
    }

    async fn finish_upgrade(
        &self,
        _: Request<FinishUpgradeRequest>,
    ) -> Result<Response<FinishUpgradeResponse>, Status> {
        let progress = self.cluster.finish_upgrade().await.map_err(status::of)?;
        Ok(Response::new(members::progress(&progress)))
    }

    async fn rename_cluster(
        &self,
        request: Request<RenameClusterRequest>,
    ) -> Result<Response<RenameClusterResponse>, Status> {
        self.cluster.rename(request.into_inner().name).await.map_err(status::of)?;
        Ok(Response::new(RenameClusterResponse {}))
    }

    async fn pause_moves(
        &self,
        _: Request<PauseMovesRequest>,
    ) -> Result<Response<PauseMovesResponse>, Status> {
        self.cluster.pause_moves().await.map_err(status::of)?;
        Ok(Response::new(PauseMovesResponse {}))
    }

    async fn resume_moves(
        &self,
        _: Request<ResumeMovesRequest>,
    ) -> Result<Response<ResumeMovesResponse>, Status> {
        self.cluster.resume_moves().await.map_err(status::of)?;
        Ok(Response::new(ResumeMovesResponse {}))
    }

    async fn cancel_moves(
        &self,
        _: Request<CancelMovesRequest>,
    ) -> Result<Response<CancelMovesResponse>, Status> {
        self.cluster.cancel_moves().await.map_err(status::of)?;
        Ok(Response::new(CancelMovesResponse {}))
    }
}

impl MembersService {
    /// Who signs for the cluster; made now if nobody does yet.
    async fn signer(&self) -> Result<Signer, Status> {
        let meta = self.cluster.meta().ok_or_else(|| status::of(Error::NotInitialized))?;
        if let Some(signer) = &meta.membership.signer {
            return Ok(signer.clone());
        }
        let made = signer::make(clock::unix_ms() / 1_000);
        let made = made.map_err(|error| Status::internal(error.to_string()))?;
        self.cluster.signer_or(made).await.map_err(status::of)
    }

    fn trusted(&self, signer: &Signer) -> Vec<Vec<u8>> {
        let mut trusted: Vec<Vec<u8>> = self.authorities.iter().map(|der| der.to_vec()).collect();
        if !trusted.contains(&signer.certificate.to_vec()) {
            trusted.push(signer.certificate.to_vec());
        }
        trusted
    }
}

fn random(bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    rand::rng().fill_bytes(&mut random);
    random
}
