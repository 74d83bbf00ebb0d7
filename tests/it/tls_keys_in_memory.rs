//! Where private keys are in memory: in locked pages of the primary that dumps leave out, and in the heaps of workers, which write no
//! dump.

use std::fs::File;
use std::os::unix::fs::FileExt;

use memchr::memmem;

use crate::support::tls::{TestAuthority, TestPair};
use crate::support::{Client, Server, process};

const RSA_KEY: &str = include_str!("tls_keys/rsa-pkcs1.pem");

/// Raises the soft limit of core dumps as far as this process may.
const RAISE_CORE_LIMIT: &str =
    r#"ulimit -c unlimited 2>/dev/null || ulimit -S -c "$(ulimit -H -c)"; exec "$0" "$@""#;

/// A mapping of a process.
#[derive(Debug)]
struct Mapping {
    start: u64,
    end: u64,
    name: String,
    /// Whether core dumps leave it out (`dd` in smaps).
    is_left_out_of_dumps: bool,
    is_locked: bool,
}

/// Reads the private writable mappings of a process.
fn mappings(pid: u32) -> Vec<Mapping> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let (mut all, mut is_private) = (Vec::<Mapping>::new(), false);
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let Some(last) = all.last_mut().filter(|_| is_private) else { continue };
            let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
            (last.is_left_out_of_dumps, last.is_locked) = (has("dd"), has("lo"));
        } else if let Some((start, rest)) = line.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            let (end, rest) = rest.split_once(' ').expect(line);
            is_private = rest.starts_with("rw-p");
            let end = u64::from_str_radix(end, 16).expect(line);
            let name = rest.split_whitespace().nth(4).unwrap_or_default().to_string();
            let (is_left_out_of_dumps, is_locked) = (false, false);
            if is_private {
                all.push(Mapping { start, end, name, is_left_out_of_dumps, is_locked });
            }
        }
    }
    all
}

/// Finds the private writable mappings of a process that contain one of these byte sequences.
fn mappings_with(pid: u32, needles: &[Vec<u8>]) -> Vec<Mapping> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of a descendant");
    let finders: Vec<_> = needles.iter().map(memmem::Finder::new).collect();
    let contains = |mapping: &Mapping| {
        let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
        let read = memory.read_at(&mut bytes, mapping.start).unwrap_or(0);
        finders.iter().any(|finder| finder.find(&bytes[..read]).is_some())
    };
    mappings(pid).into_iter().filter(contains).collect()
}

/// Returns the secret numbers of a key in PKCS#8: the scalar of an EC key, or the numbers of an RSA key.
fn secret_numbers(der: &[u8]) -> Vec<Vec<u8>> {
    // Every INTEGER and OCTET STRING without a structure inside that is long enough to be secret.
    let mut found = Vec::new();
    let mut at = 0;
    while at + 2 <= der.len() {
        let (tag, mut length, mut header) = (der[at], usize::from(der[at + 1]), 2);
        if length > 0x80 {
            let bytes = length & 0x7f;
            length =
                der[at + 2..at + 2 + bytes].iter().fold(0, |sum, b| sum << 8 | usize::from(*b));
            header += bytes;
        }
        let content = &der[at + header..at + header + length];
        let is_number = tag == 0x02 || (tag == 0x04 && content.first() != Some(&0x30));
        if is_number && length >= 32 {
            found.push(content.strip_prefix(&[0]).unwrap_or(content).to_vec());
        }
        let has_structure = tag == 0x30 || (tag == 0x04 && content.first() == Some(&0x30));
        at += if has_structure { header } else { header + length };
    }
    found
}

/// Returns what to look for: each number as it is written and with its bytes in the order of the machine's words, and a line of PEM.
fn needles(pair: &TestPair) -> Vec<Vec<u8>> {
    let der = pem_content(&pair.key);
    let mut numbers = secret_numbers(&der);
    if numbers.len() > 1 {
        // Modulus of RSA: public.
        numbers.remove(0);
    }
    let middle = |number: &[u8]| number[number.len() / 2 - 12..number.len() / 2 + 12].to_vec();
    let reversed = |number: &[u8]| number.iter().rev().copied().collect::<Vec<_>>();
    let line = pair.key.lines().nth(1).expect("a line").as_bytes().to_vec();
    let forms = numbers.iter().flat_map(|n| [middle(n), middle(&reversed(n))]);
    forms.chain([line]).collect()
}

fn pem_content(pem: &str) -> Vec<u8> {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key").secret_der().to_vec()
}

/// Returns the soft and the hard limit of core dumps of a process.
fn core_limits(pid: u32) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let mut words = line.expect("a limit").split_whitespace();
    let mut limit = || words.next().expect("a limit").parse().unwrap_or(u64::MAX);
    (limit(), limit())
}

/// Returns the environment of a process, as it was when its program began.
fn environment(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).expect("environment");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shake_hands(server: &Server, authority: &TestAuthority) {
    let client = authority.client_without_sessions();
    for _ in 0..8 {
        let client = Client::connect_tls(server.address(), &client, "example.org");
        assert_eq!(client.and_then(|mut c| c.get("/")).map(|answer| answer.status), Ok(200));
    }
}

/// Asserts that the key is in no memory of the primary that is written to dumps or swapped out, and in no worker but in its heap.
#[track_caller]
fn assert_key_is_protected(server: &Server, needles: &[Vec<u8>], may_lock: bool) {
    let found = mappings_with(server.pid(), needles);
    assert!(!found.is_empty(), "the primary has the key for the next worker");
    for mapping in &found {
        assert!(mapping.is_left_out_of_dumps, "{mapping:x?}");
        assert!(mapping.is_locked || !may_lock, "{mapping:x?}");
    }
    let status = server.status();
    let workers = status["workers"].as_array().expect("a list");
    let worker_pids: Vec<_> = workers.iter().filter_map(|worker| worker["pid"].as_u64()).collect();
    for pid in process::children(server.pid()) {
        let found = mappings_with(pid, needles);
        if !worker_pids.contains(&u64::from(pid)) {
            assert!(found.is_empty(), "{}: {found:x?}", process::command_name(pid));
            continue;
        }
        // A parsed copy signs handshakes. The pages that it was made of are gone.
        let names: Vec<_> = found.iter().map(|mapping| mapping.name.as_str()).collect();
        assert_eq!(names, ["[heap]"], "{found:x?}");
        assert!(matches!(core_limits(pid), (0 | 1, 0 | 1)), "{:?}", core_limits(pid));
    }
}

#[test]
fn private_keys_are_in_locked_pages_of_the_primary_and_in_heaps_of_workers_only() {
    let dir = tempfile::tempdir().expect("dir");
    let authority = TestAuthority::new();
    let key = rcgen::KeyPair::from_pem(RSA_KEY).expect("a key");
    let rsa = authority.issue_with(&key, RSA_KEY.to_string(), &["example.org"], |_| ());
    for pair in [authority.issue(&["example.org"]), rsa] {
        let files = pair.write(dir.path(), "a");
        let builder = Server::builder().args(files.args());
        let admin = format!("unix:{}", builder.dir().join("admin.sock").display());
        let server = builder.args(["--admin", &admin]).start();
        let needles = needles(&pair);
        assert!(needles.len() >= 3, "{}", needles.len());
        let may_lock = server.count_log(&["cannot be locked in memory"]) == 0;
        shake_hands(&server, &authority);
        assert_key_is_protected(&server, &needles, may_lock);
        server.run_verb(&["reload"]);
        shake_hands(&server, &authority);
        assert_key_is_protected(&server, &needles, may_lock);
        for text in [server.log(), server.status().to_string(), environment(server.pid())] {
            let has_key =
                needles.iter().any(|needle| memmem::find(text.as_bytes(), needle).is_some());
            assert!(!has_key, "{text}");
        }
        server.stop();
    }
}

#[test]
fn workers_with_keys_write_core_dumps_only_if_they_are_told_to() {
    let dir = tempfile::tempdir().expect("dir");
    let args = TestAuthority::new().issue(&["example.org"]).write(dir.path(), "a").args();
    let limits = |args: &[String]| {
        let server = Server::builder().script(RAISE_CORE_LIMIT).args(args).start();
        let limits = [core_limits(server.pid()), core_limits(server.worker_pids()[0])];
        server.stop();
        limits
    };
    let [primary, worker] = limits(&args);
    assert!(matches!(worker, (0 | 1, 0 | 1)), "{worker:?}");
    let allowed = [&args[..], &["--core-dumps".to_string()]].concat();
    assert_eq!(limits(&allowed), [primary; 2]);
    assert_eq!(limits(&[]), [primary; 2], "without TLS");
}
