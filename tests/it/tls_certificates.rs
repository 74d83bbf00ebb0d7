//! Certificates and private keys: what is checked at the start, by `prefork check` and at a reload.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;

use crate::support::admin_listener::admin_address;
use crate::support::command::ProcessBuilder;
use crate::support::tls::{AnyCertificate, TestAuthority, TestPair, write_file};
use crate::support::{Client, Server, env_count};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An RSA key of 1024 bits, which nobody may use.
const SHORT_RSA_KEY: &str = include_str!("tls_keys/rsa-1024.pem");
/// Keys in the forms of older tools, with the parameters of the curve in a block before one of them.
const PKCS1_KEY: &str = include_str!("tls_keys/rsa-pkcs1.pem");
const SEC1_KEY: &str = include_str!("tls_keys/ec-sec1.pem");
/// Keys that are encrypted with a passphrase, in the old form and the new one.
const ENCRYPTED_KEYS: [&str; 2] =
    [include_str!("tls_keys/encrypted-pkcs1.pem"), include_str!("tls_keys/encrypted-pkcs8.pem")];

/// The arguments of the files `a.crt` and `a.key` of the current directory.
const PAIR: &[&str] = &["--tls-cert", "a.crt", "--tls-key", "a.key"];

/// Runs `prefork check` in `dir`, and returns the exit status and standard error.
fn check(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let args = args.iter().map(|arg| match arg.ends_with(".crt") || arg.ends_with(".key") {
        true => dir.join(arg).display().to_string(),
        false => arg.to_string(),
    });
    let ended = ProcessBuilder::verb("check").args(args.collect::<Vec<_>>()).run();
    (ended.status, ended.stderr)
}

/// The public key of [`SHORT_RSA_KEY`].
struct ShortRsaPublicKey;

impl PublicKeyData for ShortRsaPublicKey {
    fn der_bytes(&self) -> &[u8] {
        include_bytes!("tls_keys/rsa-1024-public.der")
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

#[track_caller]
fn assert_refused(dir: &Path, args: &[&str], words: &[&str]) {
    let (status, err) = check(dir, args);
    assert_eq!((status, err.lines().count()), (Some(78), 1), "{words:?}: {err}");
    assert!(words.iter().all(|word| err.contains(word)), "{words:?}: {err}");
}

#[track_caller]
fn assert_accepted(dir: &Path, args: &[&str]) {
    assert_eq!(check(dir, args), (Some(0), String::new()));
}

/// Writes `a.crt` and `a.key`.
fn write_pair(dir: &Path, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) {
    write_file(&dir.join("a.crt"), certificate, 0o644);
    write_file(&dir.join("a.key"), key, 0o600);
}

/// Issues a certificate for a key in PEM.
fn issue_for_key(authority: &TestAuthority, key: &str) -> TestPair {
    let block = key.rfind("-----BEGIN").expect("PEM");
    let key_pair = KeyPair::from_pem(&key[block..]).expect("a key");
    authority.issue_with(&key_pair, key.to_string(), &["example.org"], |_| ())
}

#[test]
fn a_file_that_is_no_pem_file_is_one_clear_error() {
    let dir = tempfile::tempdir().expect("dir");
    let dir = dir.path();
    let pair = TestAuthority::new().issue(&["example.org"]);
    let cut = &pair.certificate[..pair.certificate.len() / 2];
    let damaged = pair.certificate.replacen("MII", "M*I", 1);
    let der = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    for (certificate, words) in [
        ("", "is empty"),
        ("no PEM\n", "has no PEM block"),
        (cut, "it was cut off"),
        (damaged.as_str(), "no valid base64"),
        (der, "no valid certificate in its block 1"),
        (pair.key.as_str(), "are tls-cert and tls-key swapped?"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----",
            "a block CERTIFICATE REQUEST",
        ),
    ] {
        write_pair(dir, certificate, &pair.key);
        assert_refused(dir, PAIR, &["tls-cert = ", "a.crt", words]);
    }
    write_pair(dir, &*pair.der, &pair.key);
    assert_refused(dir, PAIR, &["tls-cert = ", "a.crt is binary (DER or PKCS#12)", "convert it"]);
    let two = format!("{}{}", pair.key, pair.key);
    for (key, words) in [
        ("", "is empty"),
        ("no PEM\n", "has no PEM block"),
        (&pair.key[..pair.key.len() / 2], "it was cut off"),
        (pair.certificate.as_str(), "has a certificate and no private key"),
        (two.as_str(), "has 2 private keys"),
        (ENCRYPTED_KEYS[0], "is encrypted with a passphrase"),
        (ENCRYPTED_KEYS[1], "is encrypted with a passphrase"),
        (
            "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
            "has no key that TLS can use",
        ),
    ] {
        write_pair(dir, &pair.certificate, key);
        assert_refused(dir, PAIR, &["tls-key = ", "a.key", words]);
    }
}

#[test]
fn a_path_that_is_no_readable_file_is_an_error_and_never_waited_for() {
    let dir = tempfile::tempdir().expect("dir");
    let dir = dir.path();
    let pair = TestAuthority::new().issue(&["example.org"]);
    pair.write(dir, "a");
    assert_accepted(dir, PAIR);
    let replace = |name: &str, make: &dyn Fn(&Path)| {
        let path = dir.join(name);
        fs::remove_file(&path).expect("removed");
        make(&path);
    };
    for name in ["a.crt", "a.key"] {
        let missing: &dyn Fn(&Path) = &|_| ();
        let fifo: &dyn Fn(&Path) = &|path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        };
        let huge: &dyn Fn(&Path) = &|path| {
            fs::File::create(path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        };
        let directory: &dyn Fn(&Path) = &|path| fs::create_dir(path).expect("a directory");
        for (make, words) in [
            (missing, "cannot be read: No such file"),
            (fifo, "is no regular file"),
            (huge, "is larger than 256 KiB"),
            (directory, "is a directory"),
        ] {
            pair.write(dir, "a");
            replace(name, make);
            assert_refused(dir, PAIR, &[name, words]);
        }
        fs::remove_dir(dir.join(name)).expect("removed");
    }
}

#[test]
fn a_pair_that_does_not_fit_or_is_not_valid_now_is_one_clear_error() {
    let dir = tempfile::tempdir().expect("dir");
    let dir = dir.path();
    let authority = TestAuthority::named("the issuer");
    let (one, other) = (authority.issue(&["example.org"]), authority.issue(&["example.org"]));
    write_pair(dir, &one.certificate, &other.key);
    assert_refused(dir, PAIR, &["a.crt does not fit the private key", "a.key"]);

    let now = SystemTime::now();
    let expired = authority.issue_changed(&["example.org"], |params| {
        params.not_before = (now - 2 * DAY).into();
        params.not_after = (now - DAY).into();
    });
    write_pair(dir, &expired.certificate, &expired.key);
    assert_refused(dir, PAIR, &["a.crt has expired at 20"]);
    let early = authority.issue_changed(&["example.org"], |params| {
        params.not_before = (now + DAY).into();
        params.not_after = (now + 2 * DAY).into();
    });
    write_pair(dir, &early.certificate, &early.key);
    assert_refused(dir, PAIR, &["a.crt is not valid before 20", "clock"]);

    let root = authority.certificate_pem();
    write_pair(dir, format!("{}{root}", one.certificate), &one.key);
    assert_accepted(dir, PAIR);
    write_pair(dir, format!("{root}{}", one.certificate), &one.key);
    assert_refused(dir, PAIR, &["a.crt is in the wrong order"]);
    let unrelated = TestAuthority::named("somebody else");
    write_pair(dir, format!("{}{}", one.certificate, unrelated.certificate_pem()), &one.key);
    assert_refused(dir, PAIR, &["wrong order", "the issuer", "somebody else"]);

    let short =
        authority.issue_with(&ShortRsaPublicKey, SHORT_RSA_KEY.into(), &["example.org"], |_| ());
    write_pair(dir, &short.certificate, &short.key);
    assert_refused(dir, PAIR, &["a.crt has an RSA key of 1024 bits"]);
}

#[test]
fn keys_of_every_usual_type_and_form_are_accepted() {
    let dir = tempfile::tempdir().expect("dir");
    let dir = dir.path();
    let authority = TestAuthority::new();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
    ] {
        let pair = authority.issue_for(algorithm, &["example.org"]);
        write_pair(dir, &pair.certificate, &pair.key);
        assert_accepted(dir, PAIR);
    }
    for key in [PKCS1_KEY, SEC1_KEY] {
        let pair = issue_for_key(&authority, key);
        write_pair(dir, &pair.certificate, &pair.key);
        assert_accepted(dir, PAIR);
        // One file for both, with Windows line ends.
        let both = format!("{}{}", pair.key, pair.certificate).replace('\n', "\r\n");
        write_file(&dir.join("both.key"), both, 0o600);
        assert_accepted(dir, &["--tls-cert", "both.key"]);
    }
}

#[test]
fn addresses_and_lists_that_do_not_fit_are_errors() {
    let dir = tempfile::tempdir().expect("dir");
    let dir = dir.path();
    let authority = TestAuthority::new();
    for (name, names) in [("a", "example.org"), ("b", "example.com"), ("c", "example.org")] {
        authority.issue(&[names]).write(dir, name);
    }
    let two_certs = ["--tls-cert", "a.crt", "--tls-cert", "b.crt", "--tls-key", "a.key"];
    assert_refused(dir, &two_certs, &["differ in length (2 and 1)"]);
    assert_refused(dir, &["--tls-key", "a.key"], &["differ in length (0 and 1)"]);
    assert_refused(dir, &["--tls-cert", "a.crt"], &["tls-key = ", "give the key in tls-key"]);
    let bind = ["--bind", "https://127.0.0.1:0"];
    assert_refused(dir, &bind, &["https://127.0.0.1:0", "give tls-cert and tls-key"]);
    let swapped = [&two_certs[..], &["--tls-key", "c.key"]].concat();
    assert_refused(dir, &swapped, &["b.crt does not fit the private key", "c.key"]);
    let same =
        ["--tls-cert", "a.crt", "--tls-cert", "c.crt", "--tls-key", "a.key", "--tls-key", "c.key"];
    assert_refused(dir, &same, &["c.crt would never be used", "a.crt is for example.org"]);
    // A client that knows no ECDSA gets the other one.
    let rsa = issue_for_key(&authority, PKCS1_KEY);
    rsa.write(dir, "c");
    assert_accepted(dir, &same);
}

#[test]
fn a_key_that_every_user_can_read_is_a_warning() {
    let dir = tempfile::tempdir().expect("dir");
    let pair = TestAuthority::new().issue(&["example.org"]).write(dir.path(), "a");
    for (mode, warnings) in [(0o640, 0), (0o644, 1), (0o602, 1)] {
        let key = fs::read(&pair.key).expect("key");
        write_file(&pair.key, key, mode);
        let (status, err) = check(dir.path(), PAIR);
        assert_eq!((status, err.lines().count()), (Some(0), warnings), "{err}");
        assert_eq!(
            err.contains("a.key can be read or changed by every user"),
            warnings == 1,
            "{err}"
        );
    }
}

#[test]
fn a_credential_of_the_service_manager_is_found_by_its_name() {
    let dir = tempfile::tempdir().expect("dir");
    TestAuthority::new().issue(&["example.org"]).write(dir.path(), "a");
    let args = ["--tls-cert", "credential:a.crt", "--tls-key", "credential:a.key"];
    let check = || ProcessBuilder::verb("check").args(args);
    let ended = check().env("CREDENTIALS_DIRECTORY", dir.path().to_str().expect("UTF-8")).run();
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
    let ended = check().run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("LoadCredential=a.crt:PATH"), "{}", ended.stderr);
}

#[test]
fn a_start_with_a_bad_pair_fails_before_anything_listens() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let pair = authority.issue(&["example.org"]).write(dir.path(), "a");
    write_file(&pair.key, authority.issue(&["example.org"]).key, 0o600);
    let ended =
        ProcessBuilder::verb("serve").args(["--bind", "127.0.0.1:0"]).args(pair.args()).run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("does not fit the private key"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("listening"), "{}", ended.stderr);
}

#[test]
fn a_reload_with_a_bad_pair_fails_and_says_why() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let good = authority.issue(&["example.org"]);
    let files = good.write(dir.path(), "a");
    let server =
        Server::builder().args(files.args()).start().allow_errors(&["tls-key", "tls-cert"]);
    let workers = server.worker_pids();
    for (path, text, why) in [
        (&files.key, authority.issue(&["example.org"]).key, "does not fit the private key"),
        (&files.certificate, String::new(), "is empty"),
    ] {
        write_file(path, text, 0o600);
        let reload = server.try_verb(&["reload"]);
        assert_ne!(reload.status, Some(0), "{reload:?}");
        assert!(reload.stderr.contains(why), "{reload:?}");
        good.write(dir.path(), "a");
    }
    assert_eq!(server.worker_pids(), workers, "no worker was replaced");
    server.run_verb(&["reload"]);
    server.wait_new_workers(2, &workers);
    server.stop();
}

/// Opens a TLS connection to the server, which must complete its handshake.
#[track_caller]
fn connect(server: &Server, client: &Arc<ClientConfig>, name: &str) -> Client {
    let connected = Client::connect_tls(server.address(), client, name);
    connected.unwrap_or_else(|e| panic!("cannot connect to {name}: {e:?}"))
}

#[test]
fn the_name_that_a_client_asks_for_selects_the_certificate() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let first = authority.issue(&["first.example", "127.0.0.1"]);
    let wild = authority.issue(&["*.example.org", "example.org"]);
    let exact = authority.issue(&["exact.example.org"]);
    let rsa = issue_for_key(&authority, PKCS1_KEY);
    let mut builder = Server::builder();
    for (name, pair) in [("first", &first), ("wild", &wild), ("exact", &exact), ("rsa", &rsa)] {
        builder = builder.args(pair.write(dir.path(), name).args());
    }
    let server = builder.start();
    let mut client = authority.client_config();
    // The certificate that is sent counts, not whether it fits.
    client.resumption = Resumption::disabled();
    client.dangerous().set_certificate_verifier(Arc::new(AnyCertificate));
    let client = Arc::new(client);
    for (name, pair) in [
        ("first.example", &first),
        ("127.0.0.1", &first),
        ("unknown.example", &first),
        ("exact.example.org", &exact),
        ("EXACT.Example.org", &exact),
        ("a.example.org", &wild),
        ("example.org", &wild),
        ("a.b.example.org", &first),
    ] {
        let mut connection = connect(&server, &client, name);
        assert_eq!(connection.tls().server_certificate(), &*pair.der, "{name}");
        assert_eq!(connection.get("/").map(|answer| answer.status), Ok(200), "{name}");
    }
    let mut old = rustls::crypto::aws_lc_rs::default_provider();
    old.cipher_suites = vec![TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    let old = ClientConfig::builder_with_provider(Arc::new(old));
    let old = old.with_safe_default_protocol_versions().expect("versions").dangerous();
    let old = old.with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth();
    let mut connection = connect(&server, &Arc::new(old), "example.org");
    assert_eq!(connection.tls().server_certificate(), &*rsa.der, "a client without ECDSA");
    server.stop();
}

#[test]
fn a_reload_shows_new_certificates_to_new_connections_and_keeps_the_others() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let (old, new) = (authority.issue(&["example.org"]), authority.issue(&["example.org"]));
    let files = old.write(dir.path(), "a");
    let server = Server::builder().args(files.args()).args(["--graceful-timeout", "60s"]).start();
    let client = authority.client_without_sessions();
    let workers = server.worker_pids();
    let mut before = connect(&server, &client, "example.org");
    assert_eq!(before.tls().server_certificate(), &*old.der);
    before.send("GET /sleep/1500 HTTP/1.1\r\nHost: test\r\n\r\n").expect("sent");
    new.write(dir.path(), "a");
    server.run_verb(&["reload"]);
    server.signal(Signal::SIGHUP);
    assert_eq!(connect(&server, &client, "example.org").tls().server_certificate(), &*new.der);
    assert_eq!(before.read().map(|answer| answer.status), Ok(200));
    server.wait_new_workers(2, &workers);
    server.stop();
}

#[test]
fn no_handshake_fails_while_certificates_are_reloaded() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let pairs = [authority.issue(&["example.org"]), authority.issue(&["example.org"])];
    let files = pairs[0].write(dir.path(), "a");
    let server = Server::builder().args(files.args()).start();
    let (client, is_done) = (authority.client_without_sessions(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = || {
            let (mut handshakes, mut seen) = (0, [false; 2]);
            while !is_done.load(Ordering::Relaxed) || handshakes < 20 {
                let mut connection = connect(&server, &client, "example.org");
                let answer = connection
                    .send_and_read("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                assert_eq!(answer.map(|answer| answer.status), Ok(200));
                let certificate = connection.tls().server_certificate();
                let shown = pairs.iter().position(|pair| &*pair.der == certificate);
                seen[shown.expect("one of the two")] = true;
                handshakes += 1;
            }
            seen
        };
        let loads = [scope.spawn(load), scope.spawn(load)];
        for round in 1..=env_count("PREFORK_RELOADS", 10) {
            pairs[round % 2].write(dir.path(), "a");
            server.run_verb(&["reload"]);
        }
        is_done.store(true, Ordering::Relaxed);
        for load in loads {
            assert_eq!(
                load.join().expect("no failure"),
                [true, true],
                "both certificates were shown"
            );
        }
    });
    server.stop();
}

#[test]
fn status_and_metrics_show_the_certificates_in_use() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::named("the issuer");
    let end = SystemTime::now() + 40 * DAY;
    let until = |params: &mut CertificateParams| params.not_after = end.into();
    let first = authority.issue_changed(&["example.org", "*.example.org"], until);
    let second = authority.issue_changed(&["example.com"], until);
    let args = [first.write(dir.path(), "a").args(), second.write(dir.path(), "b").args()].concat();
    let builder = Server::builder().args(args);
    let admin = format!("unix:{}", builder.dir().join("admin.sock").display());
    let server = builder.args(["--admin", &admin]).start();
    let status = server.status();
    let listed = status["certificates"].as_array().expect("a list");
    assert_eq!(listed.len(), 2, "{status}");
    assert!(listed[0]["file"].as_str().is_some_and(|file| file.ends_with("a.crt")), "{status}");
    assert_eq!(listed[0]["subject"], "CN=example.org");
    assert_eq!(listed[0]["issuer"], "CN=the issuer");
    assert_eq!(listed[0]["names"], serde_json::json!(["example.org", "*.example.org"]));
    assert_eq!((&listed[1]["key_type"], &listed[1]["days_left"]), (&"ECDSA".into(), &39.into()));
    let text = server.run_verb(&["status"]);
    assert!(text.contains("certificate of example.com: 39 days left"), "{text}");

    let end = end.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs();
    let admin_get = |path: &str| {
        let answer = Client::connect(&admin_address(&server)).and_then(|mut c| c.get(path));
        answer.expect(path).text().to_string()
    };
    let metrics = admin_get("/metrics");
    let line = metrics.lines().find(|line| {
        line.starts_with("prefork_tls_certificate_not_after_timestamp_seconds{")
            && line.contains("b.crt")
            && line.contains("CN=example.com")
    });
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert_eq!(value.map(|value| value as u64), Some(end), "{metrics}");
    assert!(admin_get("/status").contains("\"CN=example.org\""));
    server.stop();
}

#[test]
fn a_certificate_that_expires_soon_is_a_warning_at_the_start_and_an_error_when_it_has() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let soon = authority.issue_changed(&["example.org"], |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(8)).into();
    });
    let args = soon.write(dir.path(), "a").args();
    let server = Server::builder().args(args).start().allow_errors(&["has expired"]);
    server.wait_log(&["WARN", "expires soon", "a.crt", "CN=example.org", "days_left=0"]);
    server.wait_log(&["ERROR", "has expired", "a.crt", "days_left=-1"]);
    assert_eq!(server.status()["certificates"][0]["days_left"], -1);
    authority.issue(&["example.org"]).write(dir.path(), "a");
    server.run_verb(&["reload"]);
    assert!(server.status()["certificates"][0]["days_left"].as_i64() > Some(14));
    assert_eq!(server.count_log(&["expires soon"]), 1);
    server.stop();
}
