//! Who may speak to whom, and what becomes of calls when a connection does not hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId};
use drover_core::level::FeatureLevel;
use futures::StreamExt;
use tokio::net::TcpListener;
use tonic::transport::server::Connected;

use super::cluster::{Authority, PATIENCE, node_id};
use crate::raft::network::{PeerNetwork, PlainNetwork, ProvenPeer};
use crate::raft::peers::{CallError, Incoming, IncomingQueue, Peers, PeersConfig};
use crate::raft::tls::{TlsNetwork, certificate_name};

const DEADLINE: Duration = Duration::from_secs(10);

/// One node's connections, and where it listens.
struct End {
    peers: Peers,
    incoming: IncomingQueue,
    address: String,
}

/// Who a node is and how it shows it.
struct As<'a> {
    id: NodeId,
    cluster_id: Option<&'a str>,
    certificate: Option<(&'a Authority, String)>,
}

impl As<'_> {
    async fn start(self) -> End {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let network: Arc<dyn PeerNetwork> = match self.certificate {
            Some((authority, name)) => {
                let identity = authority.identity(name);
                Arc::new(TlsNetwork::new(listener, identity).expect("the identity is complete"))
            }
            None => Arc::new(PlainNetwork::new(listener)),
        };
        let (peers, incoming) = Peers::start(PeersConfig {
            node: self.id,
            members: BTreeMap::new(),
            cluster_id: self.cluster_id.map(str::to_owned),
            network,
            snapshot_rate: None,
            seed: Some(7),
        });
        End { peers, incoming, address }
    }
}

fn plain(number: u32) -> As<'static> {
    As { id: node_id(number), cluster_id: None, certificate: None }
}

impl End {
    fn knows(&self, id: NodeId, other: &End) {
        self.peers.set_members(BTreeMap::from([(id, other.address.clone())]));
    }

    /// Asks until the connection is up, or tells why it never is.
    async fn ask(&self, to: NodeId) -> Result<Bytes, CallError> {
        let started = tokio::time::Instant::now();
        loop {
            let asked = self.peers.request(to, GroupId::Meta, Bytes::from_static(b"?"), DEADLINE);
            match asked.await {
                Err(CallError::Unreachable { problem, .. })
                    if problem == "not connected yet" && started.elapsed() < PATIENCE =>
                {
                    tokio::task::yield_now().await;
                }
                answer => return answer,
            }
        }
    }

    /// Answers every request with `!`.
    fn answer(mut self) -> Peers {
        tokio::spawn(async move {
            while let Some(incoming) = self.incoming.recv().await {
                if let Incoming::Request { reply, .. } = incoming {
                    reply.send(Bytes::from_static(b"!")).ok();
                }
            }
        });
        self.peers
    }
}

fn refused(answer: Result<Bytes, CallError>, why: &str) {
    match answer {
        Err(CallError::Unreachable { problem, .. }) => {
            assert!(problem.contains(why), "{problem:?} does not say {why:?}");
        }
        other => panic!("it was not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_is_answered_over_the_connection_that_asked() {
    let (one, two) = (plain(1).start().await, plain(2).start().await);
    one.knows(node_id(2), &two);
    let _two = two.answer();
    assert_eq!(one.ask(node_id(2)).await, Ok(Bytes::from_static(b"!")));
}

#[tokio::test]
async fn a_node_that_is_not_the_one_addressed_refuses() {
    let (one, two) = (plain(1).start().await, plain(2).start().await);
    one.knows(node_id(3), &two);
    refused(one.ask(node_id(3)).await, "this is node 2, not node 3");
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let one = As { cluster_id: Some("alpha"), ..plain(1) }.start().await;
    let two = As { cluster_id: Some("beta"), ..plain(2) }.start().await;
    one.knows(node_id(2), &two);
    refused(one.ask(node_id(2)).await, "this is cluster beta, not alpha");
}

#[tokio::test]
async fn a_removed_node_is_refused() {
    let (one, two) = (plain(1).start().await, plain(2).start().await);
    two.knows(node_id(1), &one);
    two.peers.set_members(BTreeMap::new());
    one.knows(node_id(2), &two);
    refused(one.ask(node_id(2)).await, "node 1 was removed");
}

#[tokio::test]
async fn a_node_that_is_removed_while_it_is_connected_is_cut_off_and_told() {
    let (one, two) = (plain(1).start().await, plain(2).start().await);
    two.knows(node_id(1), &one);
    one.knows(node_id(2), &two);
    let two = two.answer();
    assert_eq!(one.ask(node_id(2)).await, Ok(Bytes::from_static(b"!")));
    let mut disowned = one.peers.disowned();
    assert!(!*disowned.borrow());
    two.set_members(BTreeMap::new());
    let asking = async {
        while one.ask(node_id(2)).await.is_ok() {}
        disowned.wait_for(|is_disowned| *is_disowned).await.map(drop)
    };
    let told = tokio::time::timeout(PATIENCE, asking).await;
    assert!(told.is_ok_and(|told| told.is_ok()), "it is not told");
}

#[tokio::test]
async fn a_build_that_does_not_support_what_is_active_is_refused_whoever_connects() {
    let active = FeatureLevel::new(FeatureLevel::LATEST.get() + 1);
    for knowing in [1, 2] {
        let (one, two) = (plain(1).start().await, plain(2).start().await);
        let ahead = if knowing == 1 { &one } else { &two };
        ahead.peers.set_active_level(active);
        one.knows(node_id(2), &two);
        let outdated = format!("node {} supports feature level", 3 - knowing);
        refused(one.ask(node_id(2)).await, &outdated);
        let heard = *two.peers.heard_active_level().borrow();
        assert_eq!(heard == active, knowing == 1, "it hears of it from whoever connects to it");
    }
}

#[tokio::test]
async fn a_certificate_for_another_node_than_the_one_addressed_is_refused_by_the_caller() {
    let authority = Authority::new();
    let named = |id| Some((&authority, certificate_name(id)));
    let one = As { certificate: named(node_id(1)), ..plain(1) }.start().await;
    let two = As { certificate: named(node_id(3)), ..plain(2) }.start().await;
    one.knows(node_id(2), &two);
    refused(one.ask(node_id(2)).await, "certificate");
}

#[tokio::test]
async fn a_node_cannot_speak_for_another_than_its_certificate_names() {
    let authority = Authority::new();
    let named = |id| Some((&authority, certificate_name(id)));
    let one = As { certificate: named(node_id(3)), ..plain(1) }.start().await;
    let two = As { certificate: named(node_id(2)), ..plain(2) }.start().await;
    one.knows(node_id(2), &two);
    refused(one.ask(node_id(2)).await, "the certificate names node 3, not node 1");
}

#[tokio::test]
async fn a_certificate_of_a_device_or_of_another_authority_does_not_open_the_peer_port() {
    let (authority, other) = (Authority::new(), Authority::new());
    let two = As { certificate: Some((&authority, certificate_name(node_id(2)))), ..plain(2) };
    let two = two.start().await;
    let device = Some((&authority, "thermometer-1".to_owned()));
    let foreign = Some((&other, certificate_name(node_id(1))));
    for certificate in [device, foreign] {
        let one = As { certificate, ..plain(1) }.start().await;
        one.knows(node_id(2), &two);
        assert!(matches!(one.ask(node_id(2)).await, Err(CallError::Unreachable { .. })));
    }
}

#[tokio::test]
async fn a_renewed_identity_proves_new_connections_and_the_former_one_none() {
    let (former, renewed) = (Authority::new(), Authority::new());
    let network = async |authority: &Authority, number| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let identity = authority.identity(certificate_name(node_id(number)));
        (TlsNetwork::new(listener, identity).expect("the identity is complete"), address)
    };
    let identity = |number| renewed.identity(certificate_name(node_id(number)));
    let (one, _) = network(&former, 1).await;
    let (two, address) = network(&former, 2).await;
    two.renew(identity(2)).expect("the identity is complete");
    let mut incoming = two.incoming();
    let accepted = tokio::spawn(async move { incoming.next().await });
    assert!(one.connect(node_id(2), &address).await.is_err(), "of another authority now");
    one.renew(identity(1)).expect("the identity is complete");
    let _connected = one.connect(node_id(2), &address).await.expect("of the same authority");
    let peer = accepted.await.expect("it does not panic").expect("one was accepted");
    assert_eq!(peer.expect("it is open").connect_info(), ProvenPeer(Some(node_id(1))));
}

#[tokio::test]
async fn a_call_under_way_fails_as_lost_when_the_peer_goes() {
    let (one, mut two) = (plain(1).start().await, plain(2).start().await);
    one.knows(node_id(2), &two);
    let asked = tokio::spawn(async move { one.ask(node_id(2)).await });
    let _reply = loop {
        let incoming = two.incoming.recv().await.expect("the request arrives");
        if let Incoming::Request { reply, .. } = incoming {
            break reply;
        }
    };
    two.peers.stop();
    let answer = asked.await.expect("it does not panic");
    assert_eq!(answer, Err(CallError::Lost { node: node_id(2) }));
}

#[tokio::test]
async fn a_call_to_a_peer_that_is_down_fails_at_once() {
    let one = plain(1).start().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = unused.local_addr().expect("it is bound").to_string();
    drop(unused);
    one.peers.set_members(BTreeMap::from([(node_id(2), address)]));
    assert!(matches!(one.ask(node_id(2)).await, Err(CallError::Unreachable { .. })));
    assert!(!one.peers.is_connected(node_id(2)));
}

#[tokio::test]
async fn a_full_queue_is_refused_as_busy() {
    let (one, two) = (plain(1).start().await, plain(2).start().await);
    one.knows(node_id(2), &two);
    while !one.peers.is_connected(node_id(2)) {
        tokio::task::yield_now().await;
    }
    // Nobody takes requests up at the other end, so its queue fills.
    let calls = (0..10_000).map(|_| {
        one.peers.request(node_id(2), GroupId::Meta, Bytes::new(), Duration::from_secs(1))
    });
    let answers = futures::future::join_all(calls).await;
    assert!(answers.contains(&Err(CallError::Busy { node: node_id(2) })));
    assert!(answers.contains(&Err(CallError::Timeout { node: node_id(2) })));
}
