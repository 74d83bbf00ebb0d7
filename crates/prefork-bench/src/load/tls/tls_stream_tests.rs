use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};

use super::*;
use crate::load::tls::TlsOptions;
use std::io::Read as _;

fn server_config(certificate: &Certificate, key: &KeyPair) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let chain = vec![certificate.der().clone()];
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("certificate"))
}

/// Makes a self-signed certificate for `localhost`.
fn certificate(change: impl FnOnce(&mut CertificateParams)) -> (Certificate, KeyPair) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec!["localhost".to_string()]).expect("name");
    change(&mut params);
    (params.self_signed(&key).expect("certificate"), key)
}

fn client(options: &TlsOptions) -> TlsClient {
    TlsClient::from_options(options, "localhost", false).expect("client").for_thread()
}

fn insecure() -> TlsOptions {
    TlsOptions { insecure: true, ..TlsOptions::default() }
}

/// Carries bytes between the two until neither has more, in pieces of `size` bytes; returns what the client
/// received.
fn exchange(
    stream: &mut TlsStream,
    server: &mut ServerConnection,
    size: usize,
) -> Result<Vec<u8>, RequestFailure> {
    let (mut received, mut buffer) = (Vec::new(), vec![0; 128 * 1024]);
    loop {
        let sent = std::mem::take(&mut stream.outgoing);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("read");
            if let Err(why) = server.process_new_packets() {
                panic!("{why}");
            }
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).expect("write");
        }
        if sent.is_empty() && answer.is_empty() {
            return Ok(received);
        }
        for piece in answer.chunks(size) {
            let kept = stream.restore_incomplete(&mut buffer);
            buffer[kept..kept + piece.len()].copy_from_slice(piece);
            stream.receive(&mut buffer, kept + piece.len(), &mut |bytes| {
                received.extend_from_slice(bytes);
                Ok(())
            })?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn records_are_read_in_pieces_of_any_size(size in 1usize..5000, length in 0usize..50_000) {
        let (certificate, key) = certificate(|_| {});
        let mut stream = TlsStream::start(&client(&insecure())).expect("start");
        let mut server = ServerConnection::new(server_config(&certificate, &key)).expect("server");
        exchange(&mut stream, &mut server, size).expect("handshake");
        prop_assert!(stream.is_established);
        prop_assert_eq!(stream.write(b"GET /"), Ok(5));
        let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
        server.writer().write_all(&body).expect("room");
        server.send_close_notify();
        prop_assert_eq!(exchange(&mut stream, &mut server, size).expect("response"), body);
        prop_assert!(stream.is_closed_by_peer());
        let mut request = [0; 5];
        server.reader().read_exact(&mut request).expect("request");
        prop_assert_eq!(&request, b"GET /");
    }
}

#[test]
fn plain_http_is_recognized_in_pieces() {
    let mut stream = TlsStream::start(&client(&insecure())).expect("start");
    let mut buffer = vec![0; 1024];
    let mut receive = |bytes: &[u8]| {
        let kept = stream.restore_incomplete(&mut buffer);
        buffer[kept..kept + bytes.len()].copy_from_slice(bytes);
        stream.receive(&mut buffer, kept + bytes.len(), &mut |_| Ok(())).map(|_| ())
    };
    assert_eq!(receive(b"HT"), Ok(()));
    assert_eq!(receive(b"TP/1.1 400 Bad Request\r\n"), Err(RequestFailure::PlainHttpAnswer));
}

#[test]
fn a_self_signed_authority_is_trusted_if_it_is_given_itself() {
    let authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("ca.pem");
    let options = TlsOptions { ca_file: Some(path.clone()), ..TlsOptions::default() };
    let handshake = |(certificate, key): &(Certificate, KeyPair), name: &str| {
        let client = TlsClient::from_options(&options, name, false).expect("client");
        let mut stream = TlsStream::start(&client).expect("start");
        let mut server = ServerConnection::new(server_config(certificate, key)).expect("server");
        exchange(&mut stream, &mut server, 4096).map(drop)
    };
    let good = certificate(authority);
    std::fs::write(&path, good.0.pem()).expect("write");
    assert_eq!(handshake(&good, "localhost"), Ok(()));
    assert_eq!(handshake(&good, "other"), Err(RequestFailure::CertificateNameMismatch));
    let other = certificate(authority);
    assert_eq!(handshake(&other, "localhost"), Err(RequestFailure::CertificateUntrusted));
    let old = certificate(|params| {
        authority(params);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    std::fs::write(&path, old.0.pem()).expect("write");
    assert_eq!(handshake(&old, "localhost"), Err(RequestFailure::CertificateExpired));
}

#[test]
fn unknown_algorithms_and_files_are_named() {
    let error = |options: TlsOptions| {
        TlsClient::from_options(&options, "localhost", false).expect_err("wrong").to_string()
    };
    let groups = vec!["x448".to_string()];
    let message = error(TlsOptions { groups, ..insecure() });
    assert!(message.contains("--tls-groups x448") && message.contains("X25519"), "{message}");
    let cipher_suites = vec!["RC4".to_string()];
    let message = error(TlsOptions { cipher_suites, ..insecure() });
    assert!(message.contains("TLS_AES_128_GCM_SHA256"), "{message}");
    let message = error(TlsOptions { ca_file: Some("/nowhere".into()), ..TlsOptions::default() });
    assert!(message.contains("/nowhere"), "{message}");
}
