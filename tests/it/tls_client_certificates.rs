//! Certificates of TLS clients: who is let in, what the application and the access log see, and reloads.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;

use crate::support::command::ProcessBuilder;
use crate::support::tls::{TestAuthority, TestPair, provider, write_file};
use crate::support::{Client, Failure, Server, wait};

const NAME: &str = "example.org";

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A server that asks for certificates of the authority in `people.crt`.
struct TlsServer {
    server: Server,
    authority: TestAuthority,
    people: TestAuthority,
    dir: tempfile::TempDir,
}

fn start(args: &[&str]) -> TlsServer {
    let (authority, people) = (TestAuthority::new(), TestAuthority::named("people"));
    let dir = tempfile::tempdir().expect("dir");
    let files = authority.issue(&[NAME]).write(dir.path(), "site");
    let ca = dir.path().join("people.crt");
    write_file(&ca, people.certificate_pem(), 0o644);
    let server = Server::builder().args(files.args()).args(["--tls-client-ca", path_text(&ca)]);
    let server = server.args(args.iter().copied()).start();
    TlsServer { server, authority, people, dir }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl TlsServer {
    /// Returns a client that shows a certificate, and remembers its sessions.
    fn client(
        &self,
        own: Option<&TestPair>,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.authority.certificate_pem().as_bytes());
        roots.add(root.expect("PEM")).expect("a root");
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let key =
            |pair: &TestPair| PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("PEM");
        let mut config = match own {
            Some(own) => {
                builder.with_client_auth_cert(vec![own.der.clone()], key(own)).expect("pair")
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }

    fn connect(&self, client: &Arc<ClientConfig>) -> Result<Client, Failure> {
        Client::connect_tls(self.server.address(), client, NAME)
    }

    /// Requests `/client` on a new connection. Returns what the server says of the TLS session.
    fn ask(&self, client: &Arc<ClientConfig>) -> Result<Value, Failure> {
        let response = self.connect(client)?.get("/client")?;
        Ok(response.json()["tls"].clone())
    }

    /// Waits until a request is in progress. Asks the primary, which needs no certificate.
    #[track_caller]
    fn wait_in_flight(&self, piece: &str) {
        wait::wait_until(&format!("{piece} in flight"), || {
            let status = self.server.status();
            let workers = status["workers"].as_array().into_iter().flatten();
            let mut requests = workers.filter_map(|w| w["serving"].as_array()).flatten();
            requests.any(|one| one["request"].as_str().is_some_and(|text| text.contains(piece)))
        });
    }

    #[track_caller]
    fn assert_refused(&self, client: &Arc<ClientConfig>, what: &str) {
        // In TLS 1.3 a client learns of it after its handshake.
        if let Ok(answer) = self.ask(client) {
            panic!("{what} was let in: {answer}");
        }
    }
}

#[test]
fn only_clients_of_the_authority_are_let_in() {
    let tls = start(&[]);
    let (ann, eve) = (tls.people.issue(&["ann"]), TestAuthority::named("people").issue(&["ann"]));
    for version in VERSIONS {
        let answer = tls.ask(&tls.client(Some(&ann), version)).expect("let in");
        assert_eq!(answer["client_certificate"]["subject"], "CN=ann", "{answer}");
        tls.assert_refused(&tls.client(None, version), "a client without a certificate");
        tls.assert_refused(&tls.client(Some(&eve), version), "a client of another authority");
    }
    let failed = wait::wait_until_some("all handshakes are counted", || {
        let counted = tls.server.status()["tls_handshakes"]["failed"].clone();
        (counted["client_certificate"] == 4).then_some(counted)
    });
    assert_eq!(failed.as_object().expect("counts").len(), 1, "{failed}");
    tls.server.stop();
}

#[test]
fn clients_without_a_certificate_are_let_in_if_it_is_optional() {
    let tls = start(&["--tls-client-auth", "optional"]);
    let eve = TestAuthority::named("people").issue(&["ann"]);
    for version in VERSIONS {
        let client = tls.client(None, version);
        for kind in ["full", "resumed"] {
            let answer = tls.ask(&client).expect("let in");
            assert_eq!(answer["client_certificate"], Value::Null, "{kind}");
            assert_eq!(answer["is_resumed"], kind == "resumed");
        }
        tls.assert_refused(&tls.client(Some(&eve), version), "a client of another authority");
    }
    tls.server.stop();
}

/// Issues a certificate whose names are as hostile as they can be.
fn hostile_pair(authority: &TestAuthority) -> TestPair {
    let change = |params: &mut CertificateParams| {
        params.distinguished_name = DistinguishedName::new();
        let organization = DnValue::BmpString("Zo\u{eb} Inc.\n".try_into().expect("BMP"));
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let name = format!("a\"\\,b\n\0\u{1b}[31m\u{202e}{}", "x".repeat(3000));
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name));
        params.subject_alt_names = vec![
            SanType::DnsName("good.example\0.evil.example".try_into().expect("ASCII")),
            SanType::URI("spiffe://example.org/ann".try_into().expect("ASCII")),
        ];
    };
    let key = KeyPair::generate().expect("key");
    authority.issue_with(&key, key.serialize_pem(), &[], change)
}

#[test]
fn resumed_sessions_have_the_client_in_answers_and_in_the_access_log_with_hostile_names_escaped() {
    let log = tempfile::tempdir().expect("dir");
    let file = log.path().join("access.log");
    let template = "$ssl_protocol $ssl_cipher $ssl_server_name $ssl_session_reused $ssl_client_verify \
                    $ssl_client_serial $ssl_client_fingerprint $ssl_client_fingerprint_sha256 \
                    $ssl_client_v_end \"$ssl_client_i_dn\" \"$ssl_client_s_dn\"";
    let tls = start(&["--access-log", path_text(&file), "--access-log-format", template]);
    let client = tls.client(Some(&hostile_pair(&tls.people)), &rustls::version::TLS13);
    let mut answers = Vec::new();
    for _ in 0..2 {
        answers.push(tls.ask(&client).expect("let in"));
    }
    assert_eq!(
        (&answers[0]["is_resumed"], &answers[1]["is_resumed"]),
        (&false.into(), &true.into())
    );
    let certificate = &answers[1]["client_certificate"];
    assert_eq!(&answers[0]["client_certificate"], certificate);
    let subject = certificate["subject"].as_str().expect("a subject");
    let begin = "CN=a\\\"\\\\\\,b\\0A\\00\\1B[31m\\E2\\80\\AExxx";
    assert!(subject.starts_with(begin) && subject.ends_with("x,O=Zoë Inc.\\0A"), "{subject}");
    assert_eq!(certificate["issuer"], "CN=people");
    assert_eq!(certificate["uris"], serde_json::json!(["spiffe://example.org/ann"]));
    assert_eq!(certificate["dns_names"], serde_json::json!([]));
    assert_eq!(answers[1]["version"], "TLSv1.3");
    let text = wait::wait_until_some("two lines", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        (text.matches('\n').count() == 2).then_some(text)
    });
    let serial = certificate["serial_number"].as_str().expect("a serial");
    let fingerprint = certificate["sha256_fingerprint"].as_str().expect("a digest");
    // Each worker writes its own lines, in any order.
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_by_key(|line| line.contains(" r SUCCESS "));
    for (line, reused) in lines.into_iter().zip([". SUCCESS", "r SUCCESS"]) {
        assert!(line.starts_with("TLSv1.3 TLS_"), "{line}");
        assert!(line.contains(&format!(" {NAME} {reused} {serial} ")), "{line}");
        assert!(line.contains(fingerprint) && line.contains("\"CN=people\""), "{line}");
        assert!(line.is_ascii() && !line.contains(char::is_control), "{line}");
        // The backslashes of the name are escaped again.
        assert!(
            line.contains("\"CN=a\\x5C\\x22\\x5C\\x5C\\x5C,b\\x5C0A\\x5C00\\x5C1B[31m"),
            "{line}"
        );
    }
    tls.server.stop();
}

#[test]
fn a_reload_with_another_authority_refuses_new_handshakes_and_resumptions_and_keeps_connections() {
    for version in VERSIONS {
        let tls = start(&["--hand-over=false"]);
        let (ann, bob) = (tls.people.issue(&["ann"]), TestAuthority::named("others"));
        let client = tls.client(Some(&ann), version);
        assert_eq!(tls.ask(&client).expect("let in")["is_resumed"], false);
        assert_eq!(tls.ask(&client).expect("let in")["is_resumed"], true);
        let mut in_progress = tls.connect(&client).expect("let in");
        in_progress.send("GET /sleep/700 HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        tls.wait_in_flight("/sleep/700");
        let old = tls.server.worker_pids();
        write_file(&tls.dir.path().join("people.crt"), bob.certificate_pem(), 0o644);
        tls.server.run_verb(&["reload", "--no-wait"]);
        assert_eq!(in_progress.read().expect("a response").status, 200);
        tls.server.wait_new_workers(2, &old);
        tls.assert_refused(&client, "a client of the old authority, with a ticket");
        let bobs = tls.client(Some(&bob.issue(&["bob"])), version);
        assert_eq!(tls.ask(&bobs).expect("let in")["client_certificate"]["subject"], "CN=bob");
        // Both authorities: who has not shown its ticket in vain resumes, also over a reload.
        let both = format!("{}{}", bob.certificate_pem(), tls.people.certificate_pem());
        write_file(&tls.dir.path().join("people.crt"), both, 0o644);
        let old = tls.server.worker_pids();
        tls.server.run_verb(&["reload"]);
        tls.server.wait_new_workers(2, &old);
        assert_eq!(tls.ask(&bobs).expect("let in")["is_resumed"], true, "{version:?}");
        let mut connected = tls.connect(&client).expect("let in again");
        assert_eq!(connected.get("/").expect("a response").status, 200);
        let kind = connected.tls().session().handshake_kind();
        assert!(matches!(kind, Some(HandshakeKind::Full | HandshakeKind::Resumed)), "{kind:?}");
        tls.server.stop();
    }
}

#[test]
fn keys_that_would_have_no_effect_and_bad_files_are_errors() {
    let dir = tempfile::tempdir().expect("dir");
    let pair = TestAuthority::new().issue(&[NAME]);
    let files = pair.write(dir.path(), "site");
    let missing = dir.path().join("none.crt");
    let check = |args: &[&str], is_tls: bool| {
        let tls_args = files.args();
        let tls_args = if is_tls { &tls_args[..] } else { &[] };
        ProcessBuilder::verb("check").args(tls_args.to_vec()).args(args.iter().copied()).run()
    };
    for (args, is_tls, why) in [
        (&["--tls-client-auth", "required"][..], true, "without tls-client-ca"),
        (&["--tls-client-crl", "x.pem"], true, "without tls-client-ca"),
        (&["--tls-client-ca", "x.pem"], false, "no effect without TLS"),
        (&["--tls-client-auth", "maybe"], true, "tls-client-auth"),
        (&["--tls-client-ca", path_text(&missing)], true, "cannot be read"),
        (&["--tls-client-ca", path_text(&files.key)], true, "a block PRIVATE KEY"),
        (
            &[
                "--tls-client-ca",
                path_text(&files.certificate),
                "--tls-client-crl",
                path_text(&files.key),
            ],
            true,
            "no revocation list",
        ),
    ] {
        let ended = check(args, is_tls);
        assert_ne!(ended.status, Some(0), "{args:?}");
        assert!(ended.stderr.contains(why), "{args:?}: {}", ended.stderr);
    }
}
