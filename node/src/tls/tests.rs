//! Handshakes in memory, with certificates of an authority of the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use drover_core::ids::NodeId;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, ServerConnection};

use super::authority::{Authority, node_name};
use super::*;

/// 2026, so that certificates are valid while the test runs for some years.
const NOW_S: u64 = 1_790_000_000;

struct Place {
    folder: tempfile::TempDir,
    authority: Authority,
    files: KeyPair,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(&folder.path().join("tls"), now_s()).expect("made");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let files = authority.issue_server(&names).expect("issued");
    Place { folder, authority, files }
}

/// The certificate has to be valid at the real time, which rustls reads by itself.
fn now_s() -> u64 {
    NOW_S.max(crate::clock::unix_ms() / 1000)
}

fn client(place: &Place, version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&place.authority.certificate()).expect("the CA") {
        roots.add(certificate).expect("a CA");
    }
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .expect("a served version")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Shakes hands as `name`; what the client sees, or why it failed.
fn shake(
    server: &ServerTls,
    client: ClientConfig,
    name: &str,
) -> Result<(ProtocolVersion, Vec<CertificateDer<'static>>), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(server.config())?;
    for _ in 0..10 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("to memory");
        server.read_tls(&mut &wire[..]).expect("from memory");
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).expect("to memory");
        client.read_tls(&mut &wire[..]).expect("from memory");
        client.process_new_packets()?;
        if !client.is_handshaking() && !server.is_handshaking() {
            let version = client.protocol_version().expect("shaken");
            let chain = client.peer_certificates().expect("shaken").to_vec();
            return Ok((version, chain));
        }
    }
    panic!("no end of the handshake");
}

#[test]
fn both_versions_are_served_under_each_name() {
    let place = place();
    let server = ServerTls::load(place.files.clone()).expect("in order");
    for (version, expected) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        for name in ["localhost", "127.0.0.1"] {
            let (version, _) = shake(&server, client(&place, version), name).expect(name);
            assert_eq!(version, expected);
        }
    }
    let other = shake(&server, client(&place, &rustls::version::TLS13), "elsewhere");
    assert!(other.is_err(), "a name that is not in the certificate");
}

#[test]
fn a_client_certificate_that_nobody_knows_does_not_fail_the_handshake() {
    let place = place();
    let server = ServerTls::load(place.files.clone()).expect("in order");
    let stranger = rcgen::generate_simple_self_signed(vec!["device".to_owned()]).expect("made");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let plain = client(&place, version);
        let key = PrivateKeyDer::try_from(stranger.signing_key.serialize_der()).expect("a key");
        let certified = CertifiedKey::new(
            vec![stranger.cert.der().clone()],
            ring::default_provider().key_provider.load_private_key(key).expect("a key"),
        );
        let mut with_certificate = plain;
        with_certificate.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        assert!(shake(&server, with_certificate, "localhost").is_ok());
    }
}

#[test]
fn a_reload_serves_the_new_certificate_and_a_bad_one_changes_nothing() {
    let place = place();
    let server = ServerTls::load(place.files.clone()).expect("in order");
    let served =
        || shake(&server, client(&place, &rustls::version::TLS13), "localhost").expect("served").1;
    let first = served();
    place.authority.issue_server(&["localhost".to_owned()]).expect("issued");
    assert_eq!(served(), first, "not before the reload");
    server.reload().expect("in order");
    let second = served();
    assert_ne!(second, first);
    fs::write(&place.files.certificate, "nonsense").expect("written");
    assert!(matches!(server.reload(), Err(Error::File { .. })));
    assert_eq!(served(), second);
}

#[test]
fn a_key_of_another_certificate_is_found_out() {
    let place = place();
    let node = place.authority.issue_node(NodeId::new(1, 0)).expect("issued");
    let files = KeyPair { certificate: place.files.certificate, key: node.key };
    assert!(matches!(ServerTls::load(files), Err(Error::Mismatch { .. })));
}

#[test]
fn keys_are_for_their_owner_only_and_an_authority_stays_the_same() {
    let place = place();
    let folder = place.folder.path().join("tls");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in fs::read_dir(&folder).expect("readable") {
        assert_eq!(mode(&entry.expect("an entry").path()), 0o600);
    }
    let before = fs::read(place.authority.certificate()).expect("there");
    let again = Authority::open_or_create(&folder, now_s()).expect("opened");
    assert_eq!(fs::read(again.certificate()).expect("there"), before);
    let files = again.issue_server(&["localhost".to_owned()]).expect("issued");
    let server = ServerTls::load(files).expect("in order");
    assert!(shake(&server, client(&place, &rustls::version::TLS13), "localhost").is_ok());
}

#[test]
fn a_node_is_known_by_number_and_generation() {
    assert_eq!(node_name(NodeId::new(3, 1)), "node-3-1.drover");
    let place = place();
    let files = place.authority.issue_node(NodeId::new(3, 1)).expect("issued");
    let server = ServerTls::load(files).expect("in order");
    let config = || client(&place, &rustls::version::TLS13);
    assert!(shake(&server, config(), "node-3-1.drover").is_ok());
    assert!(shake(&server, config(), "node-3-0.drover").is_err());
}
