//! Handshakes in memory, with rustls as the client: resumption, and certificates of clients.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use tempfile::TempDir;

use super::server_config::{build_server_config, crypto_provider};
use super::session_certificates::certificates_of_session;
use super::{AlpnProtocols, ClientAuthentication, SessionTickets, TicketKeyMemory, TlsOptions};
use crate::config::ClientAuth;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority")
}

fn issue(authority: &Authority, name: &str, serial: u64) -> (CertificateDer<'static>, Vec<u8>) {
    let mut params = CertificateParams::new(vec![name.to_string()]).expect("name");
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, authority).expect("certificate");
    (certificate.der().clone(), key.serialize_der())
}

fn private_key(der: &[u8]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(der.to_vec()).into()
}

/// A server whose TLS configuration changes as a reload changes it, while its ticket keys stay.
struct Server {
    keys: TicketKeyMemory,
    resolver: Arc<dyn ResolvesServerCert>,
    dir: TempDir,
}

impl Server {
    fn new(server_authority: &Authority) -> Server {
        let (certificate, key) = issue(server_authority, "localhost", 1);
        let key = crypto_provider().key_provider.load_private_key(private_key(&key)).expect("key");
        let certified = CertifiedKey::new(vec![certificate], key);
        Server {
            keys: TicketKeyMemory::create().expect("keys"),
            resolver: Arc::new(SingleCertAndKey::from(certified)),
            dir: tempfile::tempdir().expect("directory"),
        }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    /// Returns what authenticates clients by `authority`, whose list revokes `revoked`.
    fn clients(
        &self,
        authority: &Authority,
        revoked: Option<&[u64]>,
        mode: ClientAuth,
    ) -> ClientAuthentication {
        let ca = self.file("ca.pem", &authority.pem());
        let crl = revoked.map(|serials| self.file("crl.pem", &revocation_list(authority, serials)));
        ClientAuthentication::load(&ca, crl.as_deref(), mode).expect("loaded").0
    }

    fn config(&self, clients: Option<&ClientAuthentication>) -> Arc<ServerConfig> {
        let passed = self.keys.fd().try_clone_to_owned().expect("descriptor");
        let keys = TicketKeyMemory::inherit(passed).and_then(TicketKeyMemory::into_reader);
        let tickets =
            SessionTickets::new(keys.expect("reader"), Duration::from_secs(3600), clients.cloned());
        let options = TlsOptions {
            alpn: AlpnProtocols::Http2,
            tickets: Some(Arc::new(tickets)),
            client_verifier: clients.map(ClientAuthentication::verifier),
        };
        build_server_config(Arc::clone(&self.resolver), options).expect("configuration")
    }
}

fn revocation_list(authority: &Authority, serials: &[u64]) -> String {
    let revoked = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(4000, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(authority).expect("list").pem().expect("PEM")
}

/// Returns a client that remembers its sessions, with a certificate of its own or none.
fn client(
    server_authority: &Authority,
    own: Option<&(CertificateDer<'static>, Vec<u8>)>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(server_authority.der().clone()).expect("root");
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[version])
        .expect("version")
        .with_root_certificates(roots);
    let mut config = match own {
        Some((certificate, key)) => builder
            .with_client_auth_cert(vec![certificate.clone()], private_key(key))
            .expect("certificate"),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::in_memory_sessions(8);
    Arc::new(config)
}

/// Performs a handshake, and reads the tickets.
fn connect(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<ServerConnection, rustls::Error> {
    let name = ServerName::try_from("localhost").expect("name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("client");
    let mut server = ServerConnection::new(Arc::clone(server)).expect("server");
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("written");
        }
        server.read_tls(&mut bytes.as_slice()).expect("read");
        server.process_new_packets()?;
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("written");
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("read");
            client.process_new_packets()?;
        }
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    Ok(server)
}

fn kind(connected: &ServerConnection) -> Option<HandshakeKind> {
    connected.handshake_kind()
}

#[test]
fn a_client_resumes_after_a_reload_and_a_rotation_and_not_after_two() {
    let server_authority = authority("server");
    let server = Server::new(&server_authority);
    for version in VERSIONS {
        let client = client(&server_authority, None, version);
        let full = connect(&client, &server.config(None)).expect("connected");
        assert_eq!(kind(&full), Some(HandshakeKind::Full), "{version:?}");
        for _ in 0..3 {
            let resumed = connect(&client, &server.config(None)).expect("connected");
            assert_eq!(kind(&resumed), Some(HandshakeKind::Resumed), "{version:?}");
        }
        server.keys.rotate().expect("rotated");
        let resumed = connect(&client, &server.config(None)).expect("connected");
        assert_eq!(kind(&resumed), Some(HandshakeKind::Resumed), "{version:?}");
        server.keys.rotate().expect("rotated");
        server.keys.rotate().expect("rotated");
        let full = connect(&client, &server.config(None)).expect("connected");
        assert_eq!(kind(&full), Some(HandshakeKind::Full), "{version:?}");
    }
}

#[test]
fn a_resumed_session_has_the_certificate_of_its_client() {
    let (server_authority, people) = (authority("server"), authority("people"));
    let server = Server::new(&server_authority);
    let ann = issue(&people, "ann", 7);
    for version in VERSIONS {
        let client = client(&server_authority, Some(&ann), version);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            // As a reload with the same authority, and a list that does not have her.
            let clients = server.clients(&people, Some(&[8]), ClientAuth::Required);
            let connected = connect(&client, &server.config(Some(&clients))).expect("connected");
            assert_eq!(kind(&connected), Some(expected), "{version:?}");
            assert_eq!(connected.peer_certificates(), Some(&[ann.0.clone()][..]), "{version:?}");
        }
    }
}

#[test]
fn a_session_of_a_client_that_is_no_longer_let_in_is_not_resumed() {
    let (server_authority, people) = (authority("server"), authority("people"));
    let server = Server::new(&server_authority);
    // A different key under the same name.
    let others = authority("people");
    let ann = issue(&people, "ann", 7);
    for version in VERSIONS {
        for (name, later_authority, revoked) in
            [("another authority", &others, None), ("revoked", &people, Some(&[7][..]))]
        {
            let client = client(&server_authority, Some(&ann), version);
            let clients = server.clients(&people, None, ClientAuth::Required);
            connect(&client, &server.config(Some(&clients))).expect("connected");
            for mode in [ClientAuth::Required, ClientAuth::Optional] {
                let clients = server.clients(later_authority, revoked, mode);
                let error = connect(&client, &server.config(Some(&clients))).map(drop);
                let error = error.expect_err(name);
                assert!(
                    matches!(error, rustls::Error::InvalidCertificate(_)),
                    "{name} {mode} {version:?}: {error}"
                );
            }
        }
    }
}

#[test]
fn a_session_without_a_certificate_is_not_resumed_once_one_is_required() {
    let (server_authority, people) = (authority("server"), authority("people"));
    let server = Server::new(&server_authority);
    for version in VERSIONS {
        let client = client(&server_authority, None, version);
        let optional = server.clients(&people, None, ClientAuth::Optional);
        for before in [None, Some(&optional)] {
            connect(&client, &server.config(before)).expect("connected");
            let required = server.clients(&people, None, ClientAuth::Required);
            let error = connect(&client, &server.config(Some(&required))).map(drop);
            let error = error.expect_err("no certificate");
            assert!(matches!(error, rustls::Error::NoCertificatesPresented), "{error}");
        }
        let resumed = connect(&client, &server.config(Some(&optional))).expect("connected");
        assert!(resumed.peer_certificates().is_none());
    }
}

#[test]
fn a_certificate_is_worth_nothing_once_clients_are_not_asked_for_one() {
    let (server_authority, people) = (authority("server"), authority("people"));
    let server = Server::new(&server_authority);
    let ann = issue(&people, "ann", 7);
    for version in VERSIONS {
        let client = client(&server_authority, Some(&ann), version);
        let clients = server.clients(&people, None, ClientAuth::Optional);
        connect(&client, &server.config(Some(&clients))).expect("connected");
        let connected = connect(&client, &server.config(None)).expect("connected");
        assert_eq!(kind(&connected), Some(HandshakeKind::Full), "{version:?}");
        assert!(connected.peer_certificates().is_none());
    }
}

#[test]
fn the_certificates_in_a_session_are_found() {
    // The format of rustls: the other tests would fail as well, but not say why.
    let name = [&[1, 4][..], b"host"].concat();
    let fixed = [&[3, 4, 19, 1, 2, 9, 9, 0][..]].concat();
    let certificates = [1, 0, 0, 9, 0, 0, 2, 5, 6, 0, 0, 1, 7];
    let end = [&[1, 2][..], b"h2", &[0, 0], &[0; 12]].concat();
    let with = [&name[..], &fixed, &certificates, &end].concat();
    let found = certificates_of_session(&with).expect("a session");
    assert_eq!(found, [CertificateDer::from(&[5, 6][..]), CertificateDer::from(&[7][..])]);
    let without = [&[0][..], &fixed, &[0], &end].concat();
    assert_eq!(certificates_of_session(&without), Some(Vec::new()));
    for length in 0..with.len() {
        assert_eq!(certificates_of_session(&with[..length]), None);
    }
    assert_eq!(certificates_of_session(&[&with[..], &[0]].concat()), None);
    let empty_list = [&[0][..], &fixed, &[1, 0, 0, 0], &end].concat();
    assert_eq!(certificates_of_session(&empty_list), None);
}

#[test]
fn files_that_are_no_authorities_or_lists_are_refused() {
    let (server_authority, people) = (authority("server"), authority("people"));
    let server = Server::new(&server_authority);
    let ca = server.file("people.pem", &people.pem());
    let mut leaf = CertificateParams::new(vec!["ann".to_string()]).expect("name");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate().expect("key");
    let leaf = leaf.self_signed(&key).expect("certificate");
    let mut old = CertificateParams::default();
    old.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    old.not_after = date_time_ymd(2020, 1, 1);
    let old = old.self_signed(&key).expect("certificate").pem();
    let damaged = people.pem().replace("\nMII", "\nAAA");
    for (name, content, why) in [
        ("key.pem", key.serialize_pem(), "has no certificate, but a block PRIVATE KEY"),
        ("leaf.pem", leaf.pem(), "which is no certification authority"),
        ("old.pem", old.clone(), "has expired certificates only"),
        ("text.pem", "hello".to_string(), "has no certificate"),
        ("empty.pem", String::new(), "is empty"),
        ("damaged.pem", damaged, "no valid certificate in its block 1"),
    ] {
        let path = server.file(name, &content);
        let error = ClientAuthentication::load(&path, None, ClientAuth::Required);
        let error = error.map(drop).expect_err(why).to_string();
        assert!(error.contains(why) && error.contains("tls-client-ca = /"), "{name}: {error}");
        let error = ClientAuthentication::load(&ca, Some(&path), ClientAuth::Required);
        let error = error.map(drop).expect_err(name).to_string();
        assert!(error.contains("tls-client-crl = /"), "{name}: {error}");
    }
    let both = server.file("both.pem", &format!("{}{old}", people.pem()));
    let (_, warnings) =
        ClientAuthentication::load(&both, None, ClientAuth::Required).expect("one is valid");
    assert!(warnings.len() == 1 && warnings[0].contains("has expired at"), "{warnings:?}");
}
