//! Who is calling, and whether they may: before a byte of the request is parsed.
//!
//! Three credentials are known. A token that an access policy signed (`authorization: SharedAccessSignature sr=…`); a
//! client certificate with a policy's name as its common name, where the listener has verified it against the CA for
//! clients; and the bootstrap token of a node (`authorization: Bearer …`), which is in its data folder and opens what
//! must work before there are policies. A node that joins has a fourth for its one call: a join token. What each method
//! asks for stands in [`permissions`](super::permissions).

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use drover_cluster::Cluster;
use drover_cluster::core::access::Permission;
use drover_cluster::core::membership::MembershipRefusal;
use drover_cluster::core::meta::{Meta, Policy};
use futures::future::{Either, Ready, ready};
use http::header::AUTHORIZATION;
use http::{Request, Response};
use subtle::ConstantTimeEq;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::debug;

use super::listener::Peer;
use super::permissions::{Rule, rule};
use super::status;
use crate::tls::{Proven, signer};
use crate::{clock, identity, join};

const HOW_TO_AUTHENTICATE: &str = "send `authorization: SharedAccessSignature sr=…&sig=…&se=…&skn=…`, made with a key of an \
     access policy, or connect with a client certificate of a policy";
const HOW_TO_BOOTSTRAP: &str = "there is no cluster yet: run `drover cluster init` with the bootstrap token of this node (`authorization: \
     Bearer …`, the file admin.token in its data folder)";

/// The secret that lets the owner of a node make a cluster of it. It never shows itself in logs.
#[derive(Clone)]
pub struct BootstrapToken(Arc<str>);

impl BootstrapToken {
    /// Shorter ones could be guessed.
    pub const CHARACTERS_MIN: usize = 32;

    pub fn new(token: &str) -> Option<Self> {
        let token = token.trim();
        (token.len() >= Self::CHARACTERS_MIN).then(|| Self(token.into()))
    }

    fn is(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootstrapToken(…)")
    }
}

/// Who was let in.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// The holder of the node's bootstrap token.
    Bootstrap,
    /// The holder of a key or a certificate of this policy, as it was when the call began.
    Policy { name: String, policy: Policy, expires_s: u64 },
    /// The holder of a join token that is known, used or not.
    Joining { token: String },
    /// Methods that ask for nothing.
    Anyone,
}

impl Caller {
    /// Whether a stream that this caller opened may go on: what it presented has not expired and its policy is the same.
    pub(crate) fn still_stands(&self, meta: Option<&Meta>, now_s: u64) -> bool {
        match self {
            Self::Bootstrap | Self::Joining { .. } | Self::Anyone => true,
            Self::Policy { name, policy, expires_s } => {
                now_s < *expires_s && meta.and_then(|meta| meta.policies.get(name)) == Some(policy)
            }
        }
    }
}

/// What credentials are checked against.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    pub(crate) cluster: Cluster,
    pub(crate) rules: Rules,
}

/// What a node needs beside the policies to decide.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// The names that tokens may be made for.
    pub(crate) host_names: Vec<String>,
    pub(crate) bootstrap: Option<BootstrapToken>,
}

/// What a call presents.
#[derive(Debug, Clone, Copy, Default)]
struct Presented<'a> {
    authorization: Option<&'a str>,
    /// What the listener has verified.
    certificate: Option<&'a Proven>,
}

impl Authority {
    fn admit<B>(&self, request: &Request<B>) -> Result<Caller, Status> {
        let authorization =
            request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let certificate = request.extensions().get::<Peer>().and_then(Peer::certificate);
        let presented = Presented { authorization, certificate };
        let meta = self.cluster.meta();
        let now_s = clock::unix_ms() / 1_000;
        self.rules.decide(request.uri().path(), presented, meta.as_deref(), now_s)
    }
}

impl Rules {
    fn decide(
        &self,
        path: &str,
        presented: Presented<'_>,
        meta: Option<&Meta>,
        now_s: u64,
    ) -> Result<Caller, Status> {
        let Some(rule) = rule(path) else {
            return Err(Status::unimplemented(format!("there is no method {path}")));
        };
        let (allowed, bootstrap) = match rule {
            Rule::Open => return Ok(Caller::Anyone),
            Rule::JoinToken => return joining(presented, meta),
            Rule::Bootstrap => (None, true),
            Rule::Policy(permissions) => (Some(permissions), false),
            Rule::PolicyOrBootstrap(permissions) => (Some(permissions), true),
        };
        if let Some(token) = presented.authorization.and_then(|text| text.strip_prefix("Bearer ")) {
            return self.bootstrap(token, bootstrap);
        }
        match (allowed, meta) {
            (Some(permissions), Some(meta)) => self.policy(permissions, presented, meta, now_s),
            (Some(_), None) => {
                Err(status::refused(Code::FailedPrecondition, "NOT_INITIALIZED", HOW_TO_BOOTSTRAP))
            }
            (None, _) => Err(unauthenticated(HOW_TO_BOOTSTRAP)),
        }
    }

    fn bootstrap(&self, token: &str, allowed: bool) -> Result<Caller, Status> {
        if !self.bootstrap.as_ref().is_some_and(|bootstrap| bootstrap.is(token)) {
            return Err(unauthenticated("this is not the bootstrap token of this node"));
        }
        if !allowed {
            return Err(denied(
                "the bootstrap token does not open this method: use an access policy",
            ));
        }
        Ok(Caller::Bootstrap)
    }

    fn policy(
        &self,
        permissions: &[Permission],
        presented: Presented<'_>,
        meta: &Meta,
        now_s: u64,
    ) -> Result<Caller, Status> {
        let (name, expires_s) = match (presented.authorization, presented.certificate) {
            (Some(token), _) => {
                let proved = identity::verify_policy(meta, token, &self.host_names, now_s)
                    .map_err(|reason| {
                        debug!(%reason, "refused a token of a policy");
                        unauthenticated(&format!(
                            "the token proves nothing here: {HOW_TO_AUTHENTICATE}"
                        ))
                    })?;
                (proved.name, proved.expires_s)
            }
            // A connection may live on for long after its certificate has ended.
            (None, Some(proved)) if now_s < proved.until_s => {
                (proved.common_name.to_string(), proved.until_s)
            }
            (None, _) => return Err(unauthenticated(HOW_TO_AUTHENTICATE)),
        };
        let policy =
            meta.policies.get(&name).ok_or_else(|| unauthenticated(HOW_TO_AUTHENTICATE))?;
        if permissions.iter().any(|permission| policy.permissions.contains(permission)) {
            return Ok(Caller::Policy { name, policy: policy.clone(), expires_s });
        }
        let wanted: Vec<_> = permissions.iter().map(|wanted| format!("{wanted:?}")).collect();
        let wanted = wanted.join(" or ");
        Err(denied(&format!("policy {name} lacks a permission: use one that has {wanted}")))
    }
}

/// Whether the token can be used still is decided when it is: only then is it used.
fn joining(presented: Presented<'_>, meta: Option<&Meta>) -> Result<Caller, Status> {
    let known = || {
        let credential = presented.authorization?.strip_prefix("Join ")?;
        let (id, secret) = join::token::parse_credential(credential)?;
        let token = meta?.membership.tokens.get(id)?;
        let digest = signer::digest(&secret);
        bool::from(token.digest.ct_eq(&digest)).then(|| Caller::Joining { token: id.to_owned() })
    };
    known().ok_or_else(|| {
        let unknown = MembershipRefusal::TokenUnknown.to_string();
        status::refused(Code::Unauthenticated, "JOIN_TOKEN_UNKNOWN", &unknown)
    })
}

fn unauthenticated(text: &str) -> Status {
    status::refused(Code::Unauthenticated, "UNAUTHENTICATED", text)
}

fn denied(text: &str) -> Status {
    status::refused(Code::PermissionDenied, "PERMISSION_DENIED", text)
}

/// Lets calls through that may pass and answers the others itself.
#[derive(Debug, Clone)]
pub(crate) struct AuthorizeLayer(pub(crate) Arc<Authority>);

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { inner, authority: Arc::clone(&self.0) }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Authorize<S> {
    inner: S,
    authority: Arc<Authority>,
}

impl<S, B> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.authority.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use drover_cluster::core::access::Permission::{
        ClusterAdmin, RegistryRead, RegistryWrite, ServiceConnect,
    };
    use drover_cluster::core::device::Key;
    use drover_cluster::core::ids::ShardCount;
    use drover_cluster::core::level::Levels;
    use drover_cluster::core::membership::Membership;

    use super::*;
    use crate::identity::{device_token, policy_token};

    const NOW_S: u64 = 1_700_000_000;
    const BOOTSTRAP: &str = "0123456789abcdef0123456789abcdef";
    const GET: &str = "/drover.admin.v1.Devices/GetDevice";
    const CREATE: &str = "/drover.admin.v1.Devices/CreateDevice";
    const TAIL: &str = "/drover.admin.v1.Messages/Tail";
    const STATUS: &str = "/drover.admin.v1.Cluster/GetStatus";
    const INITIALIZE: &str = "/drover.admin.v1.Cluster/Initialize";
    const PUT_POLICY: &str = "/drover.admin.v1.Cluster/PutPolicy";

    fn key(letter: u8) -> Key {
        Key::new(vec![letter; 32]).expect("32 bytes")
    }

    fn meta() -> Meta {
        let policy = |letter, permissions: &[Permission]| Policy {
            primary: key(letter),
            secondary: key(letter + 1),
            permissions: permissions.iter().copied().collect(),
        };
        let policies = [
            ("owner", policy(b'a', &[RegistryRead, RegistryWrite, ServiceConnect, ClusterAdmin])),
            ("reader", policy(b'c', &[RegistryRead])),
            ("writer", policy(b'e', &[RegistryWrite])),
            ("service", policy(b'g', &[ServiceConnect])),
        ];
        Meta {
            cluster_id: "test".to_owned(),
            name: String::new(),
            shard_count: ShardCount::new(1).expect("1 is a legal count"),
            replication_factor: 1,
            members: BTreeMap::new(),
            placement: BTreeMap::new(),
            policies: policies
                .into_iter()
                .map(|(name, policy)| (name.to_owned(), policy))
                .collect(),
            authorities: BTreeMap::new(),
            membership: Membership::default(),
            levels: Levels::default(),
            restoring: None,
            version: 1,
        }
    }

    fn rules() -> Rules {
        let bootstrap = BootstrapToken::new(BOOTSTRAP);
        Rules { host_names: vec!["hub".to_owned()], bootstrap }
    }

    fn token(policy: &str, letter: u8) -> String {
        policy_token("hub", policy, &key(letter), NOW_S + 1)
    }

    fn call(path: &str, authorization: &str) -> Result<Caller, Code> {
        let authorization = Some(authorization).filter(|text| !text.is_empty());
        let presented = Presented { authorization, certificate: None };
        rules().decide(path, presented, Some(&meta()), NOW_S).map_err(|status| status.code())
    }

    #[test]
    fn without_credentials_a_call_is_told_how_to_authenticate() {
        let refused = rules().decide(GET, Presented::default(), Some(&meta()), NOW_S);
        let refused = refused.expect_err("nobody");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("SharedAccessSignature"), "{}", refused.message());
    }

    #[test]
    fn a_policy_opens_what_its_permissions_say_and_nothing_else() {
        for (policy, letter, opened) in [
            ("owner", b'a', &[GET, CREATE, TAIL, STATUS, PUT_POLICY][..]),
            ("reader", b'c', &[GET, STATUS]),
            ("writer", b'e', &[GET, CREATE, STATUS]),
            ("service", b'g', &[TAIL, STATUS]),
        ] {
            for path in [GET, CREATE, TAIL, STATUS, PUT_POLICY] {
                let answer = call(path, &token(policy, letter));
                if opened.contains(&path) {
                    assert!(answer.is_ok(), "{policy} {path}");
                } else {
                    let refused = answer.expect_err("not allowed");
                    assert_eq!(refused, Code::PermissionDenied, "{policy} {path}");
                }
            }
        }
    }

    #[test]
    fn a_token_that_proves_nothing_opens_nothing() {
        let device = "pump".parse().expect("a legal id");
        for bad in [
            token("owner", b'?'),
            token("nobody", b'a'),
            policy_token("elsewhere", "owner", &key(b'a'), NOW_S + 1),
            policy_token("hub", "owner", &key(b'a'), NOW_S - 10_000),
            device_token("hub", &device, &key(b'a'), NOW_S + 1),
            "SharedAccessSignature".to_owned(),
            "Basic b3duZXI6".to_owned(),
        ] {
            assert_eq!(call(GET, &bad).err(), Some(Code::Unauthenticated), "{bad}");
        }
    }

    #[test]
    fn the_bootstrap_token_makes_a_cluster_and_touches_no_device() {
        let bearer = format!("Bearer {BOOTSTRAP}");
        assert!(matches!(call(INITIALIZE, &bearer), Ok(Caller::Bootstrap)));
        for path in [GET, CREATE, TAIL, PUT_POLICY] {
            assert_eq!(call(path, &bearer).err(), Some(Code::PermissionDenied), "{path}");
        }
        let wrong = format!("Bearer {}", BOOTSTRAP.replace('0', "1"));
        for path in [INITIALIZE, GET] {
            assert_eq!(call(path, &wrong).err(), Some(Code::Unauthenticated), "{path}");
        }
        assert_eq!(call(INITIALIZE, "").err(), Some(Code::Unauthenticated));
        assert_eq!(call(INITIALIZE, &token("owner", b'a')).err(), Some(Code::Unauthenticated));
    }

    #[test]
    fn a_node_without_a_bootstrap_token_takes_none() {
        assert!(BootstrapToken::new("short").is_none());
        let rules = Rules { bootstrap: None, ..rules() };
        let presented = Presented { authorization: Some("Bearer "), certificate: None };
        let refused = rules.decide(INITIALIZE, presented, None, NOW_S).expect_err("no token");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }

    #[test]
    fn before_there_is_a_cluster_calls_are_told_how_to_make_one() {
        let owner = token("owner", b'a');
        let presented = Presented { authorization: Some(&owner), certificate: None };
        let refused = rules().decide(GET, presented, None, NOW_S).expect_err("no cluster");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("drover cluster init"), "{}", refused.message());
    }

    #[test]
    fn a_verified_certificate_stands_for_the_policy_of_its_name() {
        let decide = |path, name: &str| {
            let proven = Proven { common_name: name.into(), until_s: NOW_S + 1 };
            let presented = Presented { authorization: None, certificate: Some(&proven) };
            rules().decide(path, presented, Some(&meta()), NOW_S)
        };
        assert!(decide(GET, "reader").is_ok());
        assert_eq!(decide(CREATE, "reader").expect_err("reads").code(), Code::PermissionDenied);
        assert_eq!(decide(GET, "nobody").expect_err("unknown").code(), Code::Unauthenticated);
    }

    #[test]
    fn a_certificate_that_has_ended_opens_nothing_on_a_connection_that_goes_on() {
        let proven = Proven { common_name: "reader".into(), until_s: NOW_S };
        let presented = Presented { authorization: None, certificate: Some(&proven) };
        let before = rules().decide(GET, presented, Some(&meta()), NOW_S - 1).expect("valid");
        assert!(before.still_stands(Some(&meta()), NOW_S - 1));
        assert!(!before.still_stands(Some(&meta()), NOW_S));
        let after = rules().decide(GET, presented, Some(&meta()), NOW_S);
        assert_eq!(after.expect_err("ended").code(), Code::Unauthenticated);
    }

    #[test]
    fn health_asks_for_nothing_and_unknown_methods_do_not_exist() {
        assert!(matches!(call("/grpc.health.v1.Health/Check", ""), Ok(Caller::Anyone)));
        assert_eq!(call("/drover.admin.v1.Devices/Nothing", "").err(), Some(Code::Unimplemented));
    }

    #[test]
    fn a_stream_ends_with_its_token_and_with_a_change_of_its_policy() {
        let caller = call(TAIL, &token("service", b'g')).expect("allowed");
        let later = NOW_S + 1 + identity::SKEW_S;
        assert!(caller.still_stands(Some(&meta()), later - 1));
        assert!(!caller.still_stands(Some(&meta()), later));
        let mut changed = meta();
        changed.policies.remove("service");
        assert!(!caller.still_stands(Some(&changed), NOW_S));
        assert!(!caller.still_stands(None, NOW_S));
    }
}
