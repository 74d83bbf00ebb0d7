//! The servers of a comparison: their names and how to start them.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::compare_certificate::CompareCertificate;
use super::free_port::ReservedPort;
use super::peers::{
    PeerConfiguration, PeerDefinition, PeerFile, PeerFileContent, PeerListener, PeerSetup,
    all_peers, check_peer, find_peer,
};
use super::run_resources::RunResources;
use super::server_configuration::{
    ConfigurationFile, DIRECTORY_NAME, PORT_NAME, ServerConfiguration, shell_line,
};
use tokio_prefork::{ConcurrencyModel, Dispatch};

/// A server of a comparison, which can be started any number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedServer {
    /// Name in the report.
    pub name: String,
    kind: ServerCommand,
    /// Directory of static files to serve. `None` serves the paths of the built-in application.
    static_root: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ServerCommand {
    /// `prefork serve` of this program.
    BuiltIn { model: ConcurrencyModel, dispatch: Option<Dispatch>, workers: usize },
    /// A shell command.
    Peer(String),
    /// `prefork run` of this program, with flags and a program that can use the listening socket.
    Run { words: Vec<String>, workers: usize },
    /// A peer that is known by name.
    Known { peer: &'static PeerDefinition, workers: usize },
}

/// A command of a server and how it says that it is ready.
#[derive(Debug)]
pub(super) struct ServerStart {
    pub(super) command: Command,
    pub(super) ready: ReadySign,
    /// Kept while the server runs.
    pub(super) port: Option<ReservedPort>,
}

/// How a server says that it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadySign {
    /// A line of its log, which contains this text, after one with the address.
    LogText(&'static str),
    /// The server answers at this URL, with this number of processes.
    Responses { url: String, processes: usize },
}

/// What a peer's command begins with that is for `prefork run`.
const RUN_PREFIX: &str = "run ";
/// What the log of `prefork` says when it is ready.
const READY_LOG_TEXT: &str = " serve; stop with ";

impl ComparedServer {
    /// Returns `prefork serve` with a model, and a dispatch policy if not the default.
    pub fn built_in(
        model: ConcurrencyModel,
        dispatch: Option<Dispatch>,
        workers: usize,
    ) -> ComparedServer {
        let name = match dispatch {
            Some(policy) => format!("{model}/{policy}"),
            None => model.to_string(),
        };
        let kind = ServerCommand::BuiltIn { model, dispatch, workers };
        ComparedServer { name, kind, static_root: None }
    }

    /// Returns the built-in server that has this name in reports, such as `prefork/ip-hash`; `None` for a peer.
    pub fn built_in_named(name: &str, workers: usize) -> Option<ComparedServer> {
        let (model, policy) = match name.split_once('/') {
            Some((model, policy)) => (model, Some(policy.parse::<Dispatch>().ok()?)),
            None => (name, None),
        };
        Some(ComparedServer::built_in(model.parse().ok()?, policy, workers))
    }

    /// Returns the peers that are known by name and can be started here, and why the others cannot.
    pub fn installed_peers(https: bool) -> (Vec<ComparedServer>, Vec<String>) {
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        for peer in all_peers() {
            match check_peer(peer, https, false) {
                Ok(_) => found.push(ComparedServer::known(peer)),
                Err(why) => left_out.push(why),
            }
        }
        (found, left_out)
    }

    /// Returns a peer that is known by name, with one worker.
    pub(crate) fn known(peer: &'static PeerDefinition) -> ComparedServer {
        ComparedServer {
            name: peer.name.to_string(),
            kind: ServerCommand::Known { peer, workers: 1 },
            static_root: None,
        }
    }

    /// Parses the name of a known peer, or `NAME=COMMAND`. A command with a template such as `{fd}`, or one that begins with
    /// `run `, is for `prefork run`; any other is for the shell. A peer has one worker unless
    /// [`with_workers`](ComparedServer::with_workers) says otherwise.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse_peer(text: &str) -> Result<ComparedServer, String> {
        const EXPECTED_FORMAT: &str = "give NAME=COMMAND, for example mine='node server.js'";
        let Some((name, command)) = text.split_once('=') else {
            return find_peer(text).map(ComparedServer::known);
        };
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-._+/".contains(c));
        if name.is_empty() || name.len() > 40 || name.contains(odd) || command.trim().is_empty() {
            return Err(format!(
                "{text:?}: {EXPECTED_FORMAT}; a name has up to 40 letters, digits and -._+/"
            ));
        }
        let kind = match words_for_run(command.trim()) {
            Some(words) => ServerCommand::Run {
                words: words.ok_or(format!("{text:?}: a quote of the command has no end"))?,
                workers: 1,
            },
            None => ServerCommand::Peer(command.to_string()),
        };
        Ok(ComparedServer { name: name.to_string(), kind, static_root: None })
    }

    /// Sets the number of workers of a peer that `prefork run` starts or that is known by name.
    pub fn with_workers(mut self, count: usize) -> ComparedServer {
        if let ServerCommand::Run { workers, .. } | ServerCommand::Known { workers, .. } =
            &mut self.kind
        {
            *workers = count;
        }
        self
    }

    /// Returns the same server, but with the files of a directory in place of its own paths. A peer that is not known by
    /// name gets the directory in the environment variable `STATIC_ROOT`.
    pub(crate) fn with_static_root(mut self, root: Option<PathBuf>) -> ComparedServer {
        self.static_root = root;
        self
    }

    /// Returns whether it is another program than `prefork`.
    pub(crate) fn is_peer(&self) -> bool {
        !matches!(self.kind, ServerCommand::BuiltIn { .. })
    }

    /// Returns whether it is the single-process model, the reference of the comparison.
    pub(crate) fn is_single_process(&self) -> bool {
        matches!(self.kind, ServerCommand::BuiltIn { model: ConcurrencyModel::Single, .. })
    }

    /// Returns the peer that is known by name.
    pub(crate) fn known_peer(&self) -> Option<&'static PeerDefinition> {
        match self.kind {
            ServerCommand::Known { peer, .. } => Some(peer),
            _ => None,
        }
    }

    /// Returns whether it speaks TLS itself with `--https`, behind a `prefork` that does not know it.
    pub(super) fn is_run_by_prefork(&self) -> bool {
        match &self.kind {
            ServerCommand::Run { .. } => true,
            ServerCommand::Known { peer, .. } => peer.listener == PeerListener::Inherited,
            ServerCommand::BuiltIn { .. } | ServerCommand::Peer(_) => false,
        }
    }

    /// Returns whether it leads a process group, which ends with it: what has no `prefork` above it.
    pub(super) fn has_own_group(&self) -> bool {
        self.is_peer() && !self.is_run_by_prefork()
    }

    /// Writes the files of the server, and returns its command.
    ///
    /// # Errors
    /// This program is not found, the files cannot be written, or no port is free.
    pub(super) fn prepare_start(&self, resources: &RunResources) -> std::io::Result<ServerStart> {
        let certificate = resources.certificate.as_ref();
        let mut ready = ReadySign::LogText(READY_LOG_TEXT);
        let mut port = None;
        let mut command = match &self.kind {
            ServerCommand::BuiltIn { .. } => shell_free_command(&self.built_in_words(certificate))?,
            ServerCommand::Run { words, workers } => {
                shell_free_command(&run_words(*workers, words))?
            }
            ServerCommand::Peer(line) => {
                ready = ReadySign::LogText("listening on http");
                let mut command = Command::new("/bin/sh");
                // `exec` saves a process, and signals reach the server itself.
                command.args(["-c", &format!("exec {line}")]);
                command
            }
            ServerCommand::Known { peer, workers } => {
                let dir = resources.peer_directory(peer.name)?;
                if peer.listener != PeerListener::Inherited {
                    let reserved = ReservedPort::new()?;
                    let scheme = if certificate.is_some() { "https" } else { "http" };
                    let url = format!("{scheme}://{}:{}", Ipv4Addr::LOCALHOST, reserved.port());
                    ready = ReadySign::Responses { url, processes: peer.process_count(*workers) };
                    port = Some(reserved);
                }
                let number = port.as_ref().map(|port| port.port().to_string());
                let configuration =
                    self.configure(peer, resources, &dir, number.as_deref(), certificate);
                for file in &configuration.files {
                    file.write(&dir)?;
                }
                let mut command = shell_free_command(&configuration.command)?;
                command.envs(configuration.environment).current_dir(&dir);
                command
            }
        };
        remove_settings_of_shell(&mut command);
        if let Some(certificate) = certificate.filter(|_| self.is_peer()) {
            command.env("TLS_CERT", certificate.certificate_file());
            command.env("TLS_KEY", certificate.key_file());
        }
        if let Some(root) = self.static_root.as_ref().filter(|_| self.is_peer()) {
            command.env("STATIC_ROOT", root);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(ServerStart { command, ready, port })
    }

    /// Describes the server for a report.
    pub(super) fn describe(
        &self,
        resources: &RunResources,
        certificate: Option<&CompareCertificate>,
    ) -> ServerConfiguration {
        let mut described = ServerConfiguration {
            server: self.name.clone(),
            about: None,
            why: None,
            version: None,
            environment: Vec::new(),
            command: String::new(),
            files: Vec::new(),
        };
        described.command = match &self.kind {
            ServerCommand::BuiltIn { .. } => shell_line(&self.built_in_words(certificate)),
            ServerCommand::Run { words, workers } => shell_line(&run_words(*workers, words)),
            ServerCommand::Peer(line) => line.clone(),
            ServerCommand::Known { peer, .. } => {
                let port = (peer.listener != PeerListener::Inherited).then_some(PORT_NAME);
                let dir = Path::new(DIRECTORY_NAME);
                let configured = self.configure(peer, resources, dir, port, certificate);
                (described.about, described.why) = (Some(peer.about), Some(peer.why));
                described.version = resources.peer(peer.name).map(|found| found.version.clone());
                let variables = configured.environment.iter();
                described.environment =
                    variables.map(|(name, value)| format!("{name}={value}")).collect();
                described.files = configured.files.into_iter().filter_map(shown_file).collect();
                shell_line(&configured.command)
            }
        };
        described
    }

    /// Returns how a known peer is started; with the words of `prefork run` if that starts it.
    fn configure(
        &self,
        peer: &PeerDefinition,
        resources: &RunResources,
        dir: &Path,
        port: Option<&str>,
        certificate: Option<&CompareCertificate>,
    ) -> PeerConfiguration {
        let program = resources.peer(peer.name).map(|found| found.program.display().to_string());
        let workers = match self.kind {
            ServerCommand::Known { workers, .. } => workers,
            _ => 1,
        };
        let mut configuration = (peer.configure)(&PeerSetup {
            program: program.as_deref().unwrap_or(peer.program.name()),
            dir,
            port: port.unwrap_or("{port}"),
            workers,
            certificate,
            static_root: self.static_root.as_deref(),
        });
        if peer.listener == PeerListener::Inherited {
            let words = [vec!["--".to_string()], configuration.command].concat();
            configuration.command = run_words(workers, &words);
        }
        configuration
    }

    /// Returns the arguments of a `prefork serve`.
    fn built_in_words(&self, certificate: Option<&CompareCertificate>) -> Vec<String> {
        let ServerCommand::BuiltIn { model, dispatch, workers } = &self.kind else {
            return Vec::new();
        };
        let words =
            [OWN_PROGRAM, "serve", "--bind", "127.0.0.1:0", "--control", "off", "--log", "info"];
        let mut words = words.map(str::to_string).to_vec();
        let mut add = |flag: &str, value: &str| words.extend([flag, value].map(str::to_string));
        add("--model", model.name());
        if *model != ConcurrencyModel::Single {
            add("--workers", &workers.to_string());
        }
        add("--graceful-timeout", "1s");
        if let Some(policy) = dispatch {
            add("--dispatch", policy.name());
        }
        if let Some(root) = &self.static_root {
            add("--root", &root.display().to_string());
        }
        if let Some(certificate) = certificate {
            add("--tls-cert", &certificate.certificate_file().display().to_string());
            add("--tls-key", &certificate.key_file().display().to_string());
        }
        words
    }
}

/// Removes variables that are settings of the calling shell, and not meant for a server; keeps what was set for it.
fn remove_settings_of_shell(command: &mut Command) {
    let set: Vec<OsString> = command.get_envs().map(|(name, _)| name.to_os_string()).collect();
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let is_setting = text.starts_with("PREFORK_")
            || ["PORT", "WEB_CONCURRENCY", "RUST_LOG", "NOTIFY_SOCKET"].contains(&&*text);
        if is_setting && !set.contains(&name) {
            command.env_remove(name);
        }
    }
}

/// Returns the file for a report; `None` if it is only a body of zeros.
fn shown_file(file: PeerFile) -> Option<ConfigurationFile> {
    match file.content {
        PeerFileContent::Text(text) => Some(ConfigurationFile { path: file.path, text }),
        PeerFileContent::Zeros(_) => None,
    }
}

/// Stands for this program as the first word of a command.
const OWN_PROGRAM: &str = "prefork";

/// Returns the command of `prefork run` with these flags and program.
fn run_words(workers: usize, words: &[String]) -> Vec<String> {
    let workers = workers.to_string();
    let own = [OWN_PROGRAM, "run", "--bind", "127.0.0.1:0", "--control", "off", "--log", "info"];
    // What the program prints must cost the primary nothing.
    let more = ["--workers", &workers, "--graceful-timeout", "1s", "--output", "plain"];
    own.iter().chain(&more).map(|word| word.to_string()).chain(words.iter().cloned()).collect()
}

/// Returns a command that runs without a shell. The word [`OWN_PROGRAM`] is this program.
fn shell_free_command(words: &[String]) -> std::io::Result<Command> {
    let (program, arguments) = words.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut command = match program.as_str() {
        OWN_PROGRAM => Command::new(std::env::current_exe()?),
        program => Command::new(program),
    };
    command.args(arguments);
    Ok(command)
}

/// Returns the flags and the program of a command that is for `prefork run`, or `None` within if they cannot be split.
fn words_for_run(command: &str) -> Option<Option<Vec<String>>> {
    if let Some(words) = command.strip_prefix(RUN_PREFIX) {
        return Some(shlex::split(words));
    }
    let has_template = ["{fd}", "{fd:", "{port}"].iter().any(|template| command.contains(template));
    has_template.then(|| {
        let words = shlex::split(command)?;
        Some(std::iter::once("--".to_string()).chain(words).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_names() {
        let own = ComparedServer::built_in(ConcurrencyModel::Prefork, Some(Dispatch::LeastConn), 2);
        assert_eq!((own.name.as_str(), own.is_peer()), ("prefork/least-conn", false));
        let peer = ComparedServer::parse_peer("node-rr=node a.js --x=y").expect("peer");
        assert_eq!(peer.kind, ServerCommand::Peer("node a.js --x=y".to_string()));
        let words =
            |text: &str| match ComparedServer::parse_peer(text).expect(text).with_workers(3).kind {
                ServerCommand::Run { words, workers: 3 } => words.join("|"),
                other => panic!("{other:?}"),
            };
        assert_eq!(words("py=uvicorn 'my app' --fd {fd}"), "--|uvicorn|my app|--fd|{fd}");
        assert_eq!(words("node=run --ready-http / node a.js"), "--ready-http|/|node|a.js");
        for text in ["", "nodejs", "=a", "a=", "a b=c", "<b>=c", "a=run 'b"] {
            assert!(ComparedServer::parse_peer(text).is_err(), "{text}");
        }
    }
}
