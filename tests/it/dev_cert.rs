//! `prefork dev-cert`: a certificate for trials, and its key.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::support::server::ProcessBuilder;
use crate::support::{Client, Server, tls};

/// Returns a client that trusts the certificate in this file alone.
fn client_of(certificate: &std::path::Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).expect("PEM")).expect("a root");
    let builder = ClientConfig::builder_with_provider(tls::provider());
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

#[test]
fn a_server_with_the_files_is_trusted_by_clients_with_the_certificate() {
    let dir = tempfile::tempdir().expect("directory");
    let out = dir.path().join("certs");
    let made = ProcessBuilder::verb("dev-cert")
        .args(["--out".as_ref(), out.as_os_str()])
        .args(["app.test", "192.0.2.7"])
        .run();
    assert_eq!((made.status, made.stderr.as_str()), (Some(0), ""));
    let (certificate, key) = (out.join("dev-cert.pem"), out.join("dev-key.pem"));
    let words = format!("--tls-cert {} --tls-key {}", certificate.display(), key.display());
    assert!(made.stdout.contains(&words), "{}", made.stdout);
    assert!(made.stdout.contains(&format!("curl --cacert {} ", certificate.display())));
    assert_eq!(fs::metadata(&key).expect("the key").mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&certificate).expect("the certificate").mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(&out).expect("the directory").count(), 2);
    let server = Server::builder()
        .args([
            "--tls-cert".as_ref(),
            certificate.as_os_str(),
            "--tls-key".as_ref(),
            key.as_os_str(),
        ])
        .start();
    let config = client_of(&certificate);
    for name in ["localhost", "127.0.0.1", "::1", "app.test", "192.0.2.7"] {
        let mut client = Client::connect_tls(server.address(), &config, name).expect(name);
        assert_eq!(client.get("/").expect("an answer").status, 200, "{name}");
    }
    assert!(Client::connect_tls(server.address(), &config, "other.test").is_err());
    server.stop();
}

#[test]
fn files_that_are_there_are_replaced_only_with_force() {
    let dir = tempfile::tempdir().expect("directory");
    let run = |force: &[&str]| {
        let call =
            ProcessBuilder::verb("dev-cert").args(["--out".as_ref(), dir.path().as_os_str()]);
        call.args(force.iter().copied()).run()
    };
    let (certificate, key) = (dir.path().join("dev-cert.pem"), dir.path().join("dev-key.pem"));
    let other = dir.path().join("other");
    fs::write(&other, "kept").expect("write");
    // A link counts as well, and is not written through.
    symlink(&other, &certificate).expect("link");
    let refused = run(&[]);
    assert_eq!((refused.status, refused.stdout.as_str()), (Some(71), ""), "{refused:?}");
    assert!(refused.stderr.contains("--force") && !key.exists(), "{refused:?}");
    assert_eq!(run(&["--force"]).status, Some(0));
    assert_eq!(fs::read_to_string(&other).expect("text"), "kept");
    let first = fs::read_to_string(&key).expect("a key");
    assert_eq!(run(&[]).status, Some(71));
    assert_eq!(fs::read_to_string(&key).expect("the same key"), first);
    assert_eq!(run(&["--force"]).status, Some(0));
    assert_ne!(fs::read_to_string(&key).expect("another key"), first);
    assert_eq!(fs::metadata(&key).expect("the key").mode() & 0o777, 0o600);
}

#[test]
fn names_that_are_no_hosts_are_refused() {
    for name in ["https://app.test", "a b", "app.test:443", ""] {
        let refused = ProcessBuilder::verb("dev-cert").args([name]).run();
        assert_eq!(refused.status, Some(64), "{name}: {refused:?}");
    }
}
