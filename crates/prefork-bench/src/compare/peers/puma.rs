//! Puma, with a plain Rack application.

use super::{
    PeerConfiguration, PeerDefinition, PeerFile, PeerListener, PeerProgram, PeerSetup, words,
};

const APPLICATION: &str = include_str!("programs/config.ru");

pub(crate) const PUMA: PeerDefinition = PeerDefinition {
    name: "puma",
    about: "a plain Rack application on Puma, under prefork run",
    why: "5 threads per process are Puma's default on Ruby; a connection is kept for any number of requests.",
    program: PeerProgram::OnPath { name: "puma", version_args: &["--version"] },
    install: "gem install puma, or apt-get install puma",
    listener: PeerListener::Inherited,
    speaks_tls: true,
    configure: |setup| puma(setup, 0),
};

pub(crate) const PUMA_CLUSTER: PeerDefinition = PeerDefinition {
    name: "puma-cluster",
    about: "a plain Rack application in Puma's cluster mode",
    listener: PeerListener::OwnProcesses,
    configure: |setup| puma(setup, setup.workers),
    ..PUMA
};

/// Returns the configuration for this number of Puma processes; 0 for one process without a primary.
fn puma(setup: &PeerSetup<'_>, workers: usize) -> PeerConfiguration {
    let address = match setup.certificate_files() {
        None => format!("tcp://127.0.0.1:{}", setup.port),
        Some((certificate, key)) => {
            format!("ssl://127.0.0.1:{}?cert={certificate}&key={key}", setup.port)
        }
    };
    let preload = if workers > 0 { "preload_app!\n" } else { "" };
    let config = format!(
        "environment 'production'\n\
         workers {workers}\n{preload}\
         threads 5, 5\n\
         persistent_timeout 300\n\
         # Puma 7 and later close a connection after 999 requests.\n\
         max_keep_alive 1_000_000_000 if respond_to?(:max_keep_alive)\n"
    );
    // In an argument, as `prefork run` replaces {port} there.
    let (config_file, application) = (setup.file("puma.rb"), setup.file("config.ru"));
    PeerConfiguration {
        command: words(&[setup.program, "-C", &config_file, "-b", &address, &application]),
        environment: Vec::new(),
        files: vec![PeerFile::text("puma.rb", config), PeerFile::text("config.ru", APPLICATION)],
    }
}
