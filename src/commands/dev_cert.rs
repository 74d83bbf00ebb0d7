//! `prefork dev-cert`: writes a self-signed certificate and its key, to try TLS with.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use crate::output::print_result;
use tokio_prefork::{Error, Result};

/// Names that every certificate has.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How long a certificate is valid.
const VALIDITY: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How far the clock of a client may be behind.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60 * 60);

const CERTIFICATE_FILE: &str = "dev-cert.pem";
const KEY_FILE: &str = "dev-key.pem";

const EXAMPLES: &str = "\
The certificate is its own authority, so clients must be given it. It is for trials: browsers warn of it, \
and it ends after 90 days. The key is readable by its owner only. Nothing is replaced without --force.

Examples:
  prefork dev-cert
  prefork dev-cert --out certs app.test 192.0.2.7";

/// Arguments of `prefork dev-cert`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DevCertCall {
    out: PathBuf,
    is_forced: bool,
    names: Vec<String>,
}

/// Returns the definition of the verb `dev-cert`.
pub(crate) fn dev_cert_command() -> Command {
    let out = Arg::new("out")
        .long("out")
        .value_name("DIR")
        .default_value(".")
        .value_parser(value_parser!(PathBuf))
        .help("Directory for dev-cert.pem and dev-key.pem, made if it is missing");
    let force = Arg::new("force")
        .long("force")
        .action(ArgAction::SetTrue)
        .help("Replace files that are there");
    let names = Arg::new("names")
        .value_name("NAME")
        .num_args(0..)
        .value_parser(parse_name)
        .help("Host names and IP addresses beside localhost, 127.0.0.1 and ::1");
    Command::new("dev-cert")
        .about("Write a self-signed certificate and its key, to try TLS with")
        .args([out, force, names])
        .after_help(EXAMPLES)
}

/// Reads the arguments of `dev-cert`.
pub(crate) fn parse_dev_cert(matches: &ArgMatches) -> Option<DevCertCall> {
    Some(DevCertCall {
        out: matches.get_one("out").cloned()?,
        is_forced: matches.get_flag("force"),
        names: matches.get_many("names").into_iter().flatten().cloned().collect(),
    })
}

/// Checks a host name or IP address. A wildcard may stand for the first label.
fn parse_name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_inner)
    };
    let is_host = name.len() <= 253 && name.split('.').all(is_label);
    match text.parse::<IpAddr>().is_ok() || is_host {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("it is neither a host name nor an IP address".to_string()),
    }
}

/// Writes the files, and prints how to use them.
pub(crate) fn run_dev_cert(call: DevCertCall) -> Result<ExitCode> {
    let DevCertCall { out, is_forced, names } = call;
    let mut all: Vec<String> = OWN_NAMES.map(str::to_string).into();
    for name in names {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    let (certificate, key) =
        make_pair(&all).map_err(|e| Error::application("cannot make a certificate", e))?;
    // Without `./` in what is printed.
    let out = if out == Path::new(".") { PathBuf::new() } else { out };
    fs::create_dir_all(&out)
        .map_err(|e| Error::system(format!("make the directory {}", out.display()), e))?;
    let (certificate_path, key_path) = (out.join(CERTIFICATE_FILE), out.join(KEY_FILE));
    if !is_forced
        && let Some(taken) = [&key_path, &certificate_path].into_iter().find(|p| is_there(p))
    {
        return Err(already_there(taken));
    }
    write_file(&key_path, &key, 0o600, is_forced)?;
    write_file(&certificate_path, &certificate, 0o644, is_forced).inspect_err(|_| {
        if !is_forced {
            // A key without its certificate is of no use, and would be in the way.
            let _ = fs::remove_file(&key_path);
        }
    })?;
    print_result(&usage_text(&certificate_path, &key_path, &all))
}

/// Returns certificate and key in PEM.
fn make_pair(names: &[String]) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "prefork dev-cert");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Checked by strict clients.
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = (now + VALIDITY).into();
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Whether anything has this name, a broken link included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn already_there(path: &Path) -> Error {
    let exists = io::Error::from(io::ErrorKind::AlreadyExists);
    Error::system(format!("write {} (give --force to replace it)", path.display()), exists)
}

/// Writes a file that has its mode from the beginning, and is complete when it has its name.
fn write_file(path: &Path, text: &str, mode: u32, is_forced: bool) -> Result<()> {
    let failed = |e| Error::system(format!("write {}", path.display()), e);
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(&temporary);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    let named = written.and_then(|()| match is_forced {
        true => fs::rename(&temporary, path),
        // Fails if the name is taken by now.
        false => fs::hard_link(&temporary, path),
    });
    // Gone after a rename.
    let _ = fs::remove_file(&temporary);
    named.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists if is_there(path) => already_there(path),
        _ => failed(e),
    })
}

fn usage_text(certificate: &Path, key: &Path, names: &[String]) -> String {
    let (certificate, key) = (shell_word(certificate), shell_word(key));
    let mut text =
        format!("wrote {certificate} and {key}, for {}, valid for 90 days\n\n", names.join(", "));
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "  prefork serve --bind https://127.0.0.1:8443 --tls-cert {certificate} --tls-key {key}\n  \
         curl --cacert {certificate} https://localhost:8443/\n"
    );
    text
}

/// Returns a path as a word of a shell command.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=,@".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_and_addresses_become_names() {
        for name in ["app.test", "*.app.test", "192.0.2.7", "2001:db8::1", "a_b", "LOCALHOST"] {
            assert_eq!(parse_name(name), Ok(name.to_ascii_lowercase()), "{name}");
        }
        for name in ["", "a b", "a..b", "https://a", "a:80", "a.*.b", "\u{e9}.test", "a/b"] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        for (path, word) in [
            ("certs/dev-cert.pem", "certs/dev-cert.pem"),
            ("my certs/a", "'my certs/a'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }
}
