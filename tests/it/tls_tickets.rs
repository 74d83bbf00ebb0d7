//! Resumption of TLS sessions: with any worker, over reloads, kills and upgrades, until a ticket has expired.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, SupportedProtocolVersion};

use crate::support::command::ProcessBuilder;
use crate::support::tls::{TestAuthority, provider};
use crate::support::{Client, Server, process, wait};

const NAME: &str = "example.org";

/// The name of the memory with the keys in `/proc`.
const KEY_MEMORY: &str = "/memfd:prefork-ticket-keys";

/// A server with a certificate for [`NAME`], whose files a test may replace.
struct TlsServer {
    server: Server,
    authority: TestAuthority,
    dir: tempfile::TempDir,
}

fn start(configure: impl FnOnce(ProcessBuilder) -> ProcessBuilder) -> TlsServer {
    let (authority, dir) = (TestAuthority::new(), tempfile::tempdir().expect("dir"));
    let files = authority.issue(&[NAME]).write(dir.path(), "site");
    let server = configure(Server::builder().args(files.args())).start();
    TlsServer { server, authority, dir }
}

impl TlsServer {
    /// Renews the certificate, for the next reload.
    fn renew_certificate(&self) {
        self.authority.issue(&[NAME]).write(self.dir.path(), "site");
    }

    /// Returns a client of one version of TLS that remembers its sessions.
    fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut config = self.authority.client_config_of(version);
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }

    /// Sends a request on a new connection. Returns the pid of the worker, and whether the session was resumed.
    #[track_caller]
    fn request(&self, client: &Arc<ClientConfig>) -> (u32, bool) {
        let connected = Client::connect_tls(self.server.address(), client, NAME);
        let mut connected = connected.unwrap_or_else(|e| panic!("cannot connect: {e:?}"));
        let pid = connected.get("/").expect("a response").pid();
        (pid, connected.tls().session().handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// Asserts that the client resumes with each of the workers.
    #[track_caller]
    fn assert_resumes_with_all(&self, client: &Arc<ClientConfig>, what: &str) {
        let mut left = self.server.worker_pids();
        wait::wait_until(&format!("each worker has answered: {what}"), || {
            let (pid, is_resumed) = self.request(client);
            assert!(is_resumed, "{what}: a full handshake with {pid}");
            left.retain(|one| *one != pid);
            left.is_empty()
        });
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

#[test]
fn a_session_is_resumed_with_every_worker_over_reloads_kills_and_upgrades() {
    let tls = start(|server| server.with_copied_program().workers(3).dispatch("round-robin"));
    let server = &tls.server;
    for (round, version) in VERSIONS.into_iter().enumerate() {
        let client = tls.client(version);
        assert!(!tls.request(&client).1, "the first handshake is a full one");
        tls.assert_resumes_with_all(&client, "at first");
        let old = server.worker_pids();
        tls.renew_certificate();
        server.run_verb(&["reload"]);
        server.wait_new_workers(3, &old);
        tls.assert_resumes_with_all(&client, "after a reload with a new certificate");
        let old = server.worker_pids();
        old.iter().for_each(|pid| process::send_signal(*pid, Signal::SIGKILL));
        server.wait_new_workers(3, &old);
        tls.assert_resumes_with_all(&client, "after kills");
        let old = server.worker_pids();
        server.run_verb(&["upgrade"]);
        server.wait_new_workers(3, &old);
        tls.assert_resumes_with_all(&client, "after an upgrade");
        let counted = &server.status()["tls_handshakes"];
        assert!(
            counted["resumed"].as_u64() >= Some(9) && counted["full"] == round + 1,
            "{counted}"
        );
    }
    tls.server.allow_errors(&["SIGKILL", "signal"]).stop();
}

#[test]
fn a_session_is_resumed_in_all_models() {
    for model in ["single", "threads", "thread-per-core"] {
        let tls = start(|server| server.model(model, if model == "single" { 1 } else { 2 }));
        let client = tls.client(&rustls::version::TLS13);
        assert!(!tls.request(&client).1, "{model}");
        let old = tls.server.worker_pids();
        for _ in 0..8 {
            assert!(tls.request(&client).1, "{model}");
        }
        tls.server.run_verb(&["reload"]);
        tls.server.wait_new_workers(old.len(), &old);
        assert!(tls.request(&client).1, "{model}, after a reload");
        tls.server.stop();
    }
}

/// Keeps the first ticket, and shows it on every connection. Its clock stands still, so that it is the server that refuses the ticket.
///
/// For TLS 1.2: rustls gives out tickets of TLS 1.3 for one use only.
#[derive(Debug)]
struct OneTicket {
    ticket: Mutex<Option<Tls12ClientSessionValue>>,
    now: UnixTime,
}

impl ClientSessionStore for OneTicket {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.ticket.lock().expect("lock").get_or_insert(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.ticket.lock().expect("lock").clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {}

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

impl TimeProvider for OneTicket {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now)
    }
}

#[test]
fn a_ticket_can_be_used_again_for_its_lifetime_over_a_rotation_and_no_longer() {
    const LIFETIME: Duration = Duration::from_secs(4);
    let tls = start(|server| server.workers(2).args(["--tls-ticket-lifetime", "4s"]));
    // The first key is about to be replaced, so the ticket lives on over a rotation.
    let key_created = Instant::now();
    wait::wait_until("half of the key's time has passed", || key_created.elapsed() > LIFETIME / 2);
    let store = Arc::new(OneTicket { ticket: Mutex::default(), now: UnixTime::now() });
    let mut client = tls.authority.client_config_of(&rustls::version::TLS12);
    client.resumption = Resumption::store(Arc::<OneTicket>::clone(&store));
    client.time_provider = Arc::<OneTicket>::clone(&store);
    let client = Arc::new(client);
    let issued_after = Instant::now();
    assert!(!tls.request(&client).1);
    let issued_before = Instant::now();
    let mut resumed = 0;
    wait::wait_until("the ticket has expired", || {
        let begun = Instant::now();
        let (_, is_resumed) = tls.request(&client);
        if is_resumed {
            resumed += 1;
            // Ages are in whole seconds.
            let age = begun - issued_before;
            assert!(age < LIFETIME + Duration::from_secs(2), "resumed after {age:?}");
        } else {
            let age = issued_after.elapsed();
            assert!(age > LIFETIME - Duration::from_secs(1), "refused after {age:?}");
        }
        !is_resumed
    });
    assert!(resumed > 0);
    assert!(!tls.request(&client).1, "an expired ticket stays expired");
    tls.server.stop();
}

#[test]
fn sessions_are_not_resumed_with_tickets_off() {
    let tls = start(|server| server.args(["--tls-ticket-lifetime", "off"]));
    for version in VERSIONS {
        let client = tls.client(version);
        for _ in 0..3 {
            assert!(!tls.request(&client).1);
        }
    }
    assert!(key_mappings(tls.server.pid()).is_empty());
    tls.server.stop();
}

/// Returns the access rights of the mappings of the keys in a process: `r--s`.
fn key_mappings(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let mappings = maps.lines().filter(|line| line.contains(KEY_MEMORY));
    mappings.map(|line| line.split(' ').nth(1).expect("rights").to_string()).collect()
}

fn key_descriptors(pid: u32) -> usize {
    let descriptors = process::descriptors(pid);
    descriptors.iter().filter(|(_, target)| target.contains("prefork-ticket-keys")).count()
}

#[test]
fn workers_can_read_the_keys_and_not_write_them() {
    let tls = start(|server| server.with_copied_program().workers(2));
    let server = &tls.server;
    for _ in 0..2 {
        for pid in server.worker_pids() {
            assert_eq!(key_mappings(pid), ["r--s"], "pid {pid}");
            assert_eq!(key_descriptors(pid), 0, "pid {pid}");
            // `mw` would allow mprotect to make the mapping writable, and `dd` keeps it out of core dumps.
            let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
            let (_, keys) = smaps.split_once(KEY_MEMORY).expect("a mapping");
            let flags = keys.lines().find(|line| line.starts_with("VmFlags:")).expect("flags");
            assert!(!flags.contains(" mw") && flags.contains(" dd"), "{flags}");
        }
        let mut primary = key_mappings(server.pid());
        primary.sort();
        assert_eq!(
            (primary, key_descriptors(server.pid())),
            (vec!["r--s".into(), "rw-s".into()], 1)
        );
        let old = server.worker_pids();
        server.run_verb(&["upgrade"]);
        server.wait_new_workers(2, &old);
    }
    tls.server.stop();
}

#[test]
fn an_image_without_tls_drops_the_keys_of_the_one_before() {
    let (authority, dir) = (TestAuthority::new(), tempfile::tempdir().expect("dir"));
    let files = authority.issue(&[NAME]).write(dir.path(), "site");
    let path = |path: &std::path::Path| path.display().to_string();
    let plain = "bind = ['127.0.0.1:0']\nworkers = 2\n";
    let keys = format!(
        "{plain}tls-cert = ['{}']\ntls-key = ['{}']\n",
        path(&files.certificate),
        path(&files.key)
    );
    let server = Server::builder().with_copied_program().config(2, &keys).start();
    assert_eq!(key_descriptors(server.pid()), 1);
    for (config, count) in [(plain, 0), (keys.as_str(), 1)] {
        std::fs::write(server.dir().join("prefork.toml"), config).expect("written");
        let old = server.worker_pids();
        server.run_verb(&["upgrade"]);
        let workers = server.wait_new_workers(2, &old);
        assert_eq!(key_descriptors(server.pid()), count);
        assert!(workers.iter().all(|pid| key_mappings(*pid).len() == count));
    }
    server.stop();
}

/// The settings of clients of one version.
impl TestAuthority {
    fn client_config_of(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        let der =
            rustls::pki_types::pem::PemObject::from_pem_slice(self.certificate_pem().as_bytes());
        roots.add(der.expect("PEM")).expect("a root");
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}
