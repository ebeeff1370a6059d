//! Nodes that join: protobuf to typed requests and back, and what is refused before anything is proposed.

use bytes::Bytes;
use drover_cluster::PEER_FORMAT;
use drover_cluster::actors::upgrade::UpgradeProgress;
use drover_cluster::core::ids::NodeId;
use drover_cluster::core::level::FeatureLevel;
use drover_cluster::core::membership::Joining;
use drover_cluster::core::meta::Member;
use drover_proto::admin;
use tonic::{Code, Status};

use super::cluster;
use crate::grpc::status::{self, Invalid};
use crate::join::CLOCK_SKEW_MS_MAX;
use crate::tls::signer;

/// A token that lives for long is a key that lies about.
const TTL_S: std::ops::RangeInclusive<u32> = 1..=604_800;
const TTL_S_DEFAULT: u32 = 3_600;

pub(crate) fn ttl_ms(request: admin::CreateJoinTokenRequest) -> Result<u64, Invalid> {
    let ttl_s = if request.ttl_seconds == 0 { TTL_S_DEFAULT } else { request.ttl_seconds };
    if !TTL_S.contains(&ttl_s) {
        return Err(Invalid::new("ttl_seconds", "use a second to seven days"));
    }
    Ok(u64::from(ttl_s) * 1_000)
}

/// Whether this cluster and the node can work together at all.
pub(crate) fn check_fit(request: &admin::JoinRequest, now_ms: u64) -> Result<(), Status> {
    if request.format > PEER_FORMAT {
        let text = format!(
            "the node speaks format {}, this cluster {PEER_FORMAT}: join with the cluster's version, and upgrade afterwards",
            request.format
        );
        return Err(status::refused(Code::FailedPrecondition, "FORMAT_TOO_NEW", &text));
    }
    let apart_ms = request.unix_ms.abs_diff(now_ms);
    if apart_ms > CLOCK_SKEW_MS_MAX {
        let text = format!(
            "the node's clock is {} s {} this one's: set both by NTP, {} s are allowed",
            apart_ms / 1_000,
            if request.unix_ms > now_ms { "ahead of" } else { "behind" },
            CLOCK_SKEW_MS_MAX / 1_000
        );
        return Err(status::refused(Code::FailedPrecondition, "CLOCK_SKEW", &text));
    }
    Ok(())
}

pub(crate) fn joining(token: String, request: &admin::JoinRequest) -> Result<Joining, Invalid> {
    if request.number == Some(0) {
        return Err(Invalid::new("number", "nodes are numbered from 1"));
    }
    cluster::check_address("peer_address", &request.peer_address)?;
    cluster::check_address("admin_address", &request.admin_address)?;
    let key_digest: Bytes = signer::digest(&request.public_key);
    let member = Member {
        peer_address: request.peer_address.clone(),
        admin_address: request.admin_address.clone(),
        zone: request.zone.clone(),
    };
    // A node that says nothing is of a build from before there were levels.
    let supports = u16::try_from(request.feature_level.max(1))
        .map_err(|_| Invalid::new("feature_level", "at most 65535 are possible"))?;
    let (number, supports) = (request.number, FeatureLevel::new(supports));
    Ok(Joining { token, number, key_digest, member, supports })
}

pub(crate) fn contact((node, member): (&NodeId, &Member)) -> admin::JoinContact {
    admin::JoinContact {
        number: node.number(),
        generation: node.generation().into(),
        admin_address: member.admin_address.clone(),
    }
}

pub(crate) fn progress(progress: &UpgradeProgress) -> admin::FinishUpgradeResponse {
    admin::FinishUpgradeResponse {
        active_level: progress.active.get().into(),
        waiting_for: progress.waiting_for.iter().map(|node| node.number()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    #[test]
    fn a_node_with_a_wrong_clock_or_a_newer_format_does_not_fit() {
        let fits = |format, unix_ms| {
            let request = admin::JoinRequest { format, unix_ms, ..admin::JoinRequest::default() };
            check_fit(&request, NOW_MS).map_err(|status| status.message().to_owned())
        };
        assert_eq!(fits(PEER_FORMAT, NOW_MS + 60_000), Ok(()));
        let late = fits(PEER_FORMAT, NOW_MS - 300_000).expect_err("five minutes");
        assert!(late.contains("300 s behind"), "{late}");
        let early = fits(PEER_FORMAT, NOW_MS + 300_000).expect_err("five minutes");
        assert!(early.contains("300 s ahead"), "{early}");
        let newer = fits(PEER_FORMAT + 1, NOW_MS).expect_err("a newer one");
        assert!(newer.contains("upgrade"), "{newer}");
    }

    #[test]
    fn a_token_lives_for_a_week_at_the_most_and_an_hour_if_nothing_is_said() {
        let ttl = |ttl_seconds| ttl_ms(admin::CreateJoinTokenRequest { ttl_seconds });
        assert_eq!(ttl(0), Ok(3_600_000));
        assert_eq!((ttl(1), ttl(604_800)), (Ok(1_000), Ok(604_800_000)));
        assert!(ttl(604_801).is_err());
    }
}
