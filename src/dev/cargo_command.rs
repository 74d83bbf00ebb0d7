//! `cargo run` as a build and a program: `cargo build` says where the program is, and the program keeps its arguments.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::build::{
    BuildOutput, check_status, pass_output_on, run_to_end, wait_for_output, wants_colours,
};
use super::messages::BuiltProgram;

/// Options of `cargo run`, and of cargo itself, that take a value.
const OPTIONS_WITH_VALUE: [&str; 21] = [
    "-C",
    "-F",
    "-Z",
    "-j",
    "-p",
    "--artifact-dir",
    "--bin",
    "--color",
    "--config",
    "--example",
    "--explain",
    "--features",
    "--jobs",
    "--lockfile-path",
    "--manifest-path",
    "--message-format",
    "--out-dir",
    "--package",
    "--profile",
    "--target",
    "--target-dir",
];

/// The build of a program that `cargo run` would run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CargoBuild {
    /// The command, as it was given: a name or a path.
    cargo: String,
    /// The arguments before `build`, such as `+nightly`.
    before_verb: Vec<String>,
    /// The options of the build.
    options: Vec<String>,
}

/// A `cargo run`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CargoRun {
    pub(crate) build: CargoBuild,
    /// The arguments of the program.
    pub(crate) program_args: Vec<String>,
}

impl CargoRun {
    /// Takes a command apart. `None`: it is no `cargo run`.
    ///
    /// # Errors
    /// An option that a development server cannot use.
    pub(crate) fn parse(command: &[String]) -> Result<Option<CargoRun>, String> {
        let Some((cargo, arguments)) = command.split_first() else { return Ok(None) };
        if Path::new(cargo).file_name() != Some(OsStr::new("cargo")) {
            return Ok(None);
        }
        let verb = index_after_options(arguments);
        if !arguments.get(verb).is_some_and(|verb| verb == "run" || verb == "r") {
            return Ok(None);
        }
        let rest = &arguments[verb + 1..];
        let (options, program_args) = rest.split_at(index_after_options(rest));
        let program_args = program_args.strip_prefix(&["--".to_string()]).unwrap_or(program_args);
        if options.iter().any(|option| option.starts_with("--message-format")) {
            return Err("--message-format cannot be given: it is how cargo reports the program that it has built".to_string());
        }
        let build = CargoBuild {
            cargo: cargo.clone(),
            before_verb: arguments[..verb].to_vec(),
            options: options.to_vec(),
        };
        Ok(Some(CargoRun { build, program_args: program_args.to_vec() }))
    }
}

/// Returns where the first argument is that is neither an option nor the value of one. `--` is such an argument.
fn index_after_options(arguments: &[String]) -> usize {
    let mut index = 0;
    while let Some(argument) = arguments.get(index) {
        let is_toolchain = index == 0 && argument.starts_with('+');
        if argument == "--" || !(argument.starts_with('-') || is_toolchain) {
            break;
        }
        index += if OPTIONS_WITH_VALUE.contains(&argument.as_str()) { 2 } else { 1 };
    }
    index.min(arguments.len())
}

/// A line of `--message-format=json`.
#[derive(Debug, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum CargoMessage {
    CompilerArtifact(Artifact),
    CompilerMessage {
        message: Diagnostic,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Diagnostic {
    rendered: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Artifact {
    executable: Option<String>,
    manifest_path: Option<String>,
    target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Artifact {
    fn is_program(&self) -> bool {
        self.executable.is_some()
            && self.target.kind.iter().any(|kind| kind == "bin" || kind == "example")
    }

    fn to_built_program(&self) -> BuiltProgram {
        let manifest = self.manifest_path.clone().unwrap_or_default();
        let manifest_dir = Path::new(&manifest).parent().unwrap_or(Path::new(""));
        BuiltProgram {
            executable: self.executable.clone().unwrap_or_default(),
            manifest_dir: manifest_dir.display().to_string(),
        }
    }
}

/// Builds, and returns the program.
pub(crate) fn run_cargo_build(
    build: &CargoBuild,
    output: &BuildOutput,
) -> Result<BuiltProgram, String> {
    let mut command = Command::new(&build.cargo);
    command.args(&build.before_verb).arg("build").args(&build.options);
    let format = match wants_colours() {
        true => "json-diagnostic-rendered-ansi",
        false => "json",
    };
    command.arg(format!("--message-format={format}"));
    if wants_colours() && std::env::var_os("CARGO_TERM_COLOR").is_none() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let failed = |e: io::Error| format!("cannot run {}: {e}", build.cargo);
    let (messages, stdout) = io::pipe().map_err(failed)?;
    let (progress, stderr) = io::pipe().map_err(failed)?;
    command.stdout(stdout).stderr(stderr);
    let progress = pass_output_on(progress, output);
    let messages = read_messages(messages, output);
    let status = run_to_end(command).map_err(failed)?;
    wait_for_output(&messages);
    wait_for_output(&progress);
    check_status(status)?;
    let programs =
        messages.join().map_err(|_| "reading the messages of cargo failed".to_string())?;
    select_program(build, programs)
}

/// Shows the diagnostics and collects the programs, in a thread.
fn read_messages(
    reader: PipeReader,
    output: &BuildOutput,
) -> std::thread::JoinHandle<Vec<Artifact>> {
    let output = output.clone();
    std::thread::spawn(move || {
        let mut programs = Vec::new();
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            match serde_json::from_slice(&line) {
                Ok(CargoMessage::CompilerMessage { message }) => {
                    output.write(message.rendered.unwrap_or_default().as_bytes());
                }
                Ok(CargoMessage::CompilerArtifact(artifact)) if artifact.is_program() => {
                    programs.push(artifact);
                }
                Ok(_) => {}
                // What a build script or a wrapper prints.
                Err(_) => output.write(&[&line[..], b"\n"].concat()),
            }
        }
        programs
    })
}

/// Returns the program to run of those that were built, as `cargo run` selects it.
fn select_program(build: &CargoBuild, programs: Vec<Artifact>) -> Result<BuiltProgram, String> {
    let mut programs = programs;
    if programs.len() > 1 {
        let defaults = default_programs(build);
        let is_default = |one: &Artifact| {
            defaults
                .contains(&(one.manifest_path.clone().unwrap_or_default(), one.target.name.clone()))
        };
        if programs.iter().filter(|one| is_default(one)).count() == 1 {
            programs.retain(is_default);
        }
    }
    match &programs[..] {
        [program] => Ok(program.to_built_program()),
        [] => Err("cargo has built no program: give --bin NAME or --example NAME".to_string()),
        several => {
            let names: BTreeSet<&str> =
                several.iter().map(|one| one.target.name.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            Err(format!(
                "cargo has built several programs ({}): give --bin NAME, or set default-run in Cargo.toml",
                names.join(", ")
            ))
        }
    }
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    manifest_path: String,
    default_run: Option<String>,
}

/// Returns the manifests with a `default-run`, and its name. Empty if cargo does not tell.
fn default_programs(build: &CargoBuild) -> BTreeSet<(String, String)> {
    let mut command = Command::new(&build.cargo);
    command.args(&build.before_verb).args(["metadata", "--no-deps", "--format-version=1"]);
    if let Some(at) = build.options.iter().position(|option| option == "--manifest-path") {
        command.args(build.options.iter().skip(at).take(2));
    }
    let printed = command.stderr(std::process::Stdio::null()).output().map(|output| output.stdout);
    let metadata: Option<Metadata> =
        printed.ok().and_then(|json| serde_json::from_slice(&json).ok());
    let packages = metadata.map(|metadata| metadata.packages).unwrap_or_default();
    packages.into_iter().filter_map(|one| Some((one.manifest_path, one.default_run?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').filter(|word| !word.is_empty()).map(str::to_string).collect()
    }

    fn parse(line: &str) -> Option<CargoRun> {
        CargoRun::parse(&words(line)).expect(line)
    }

    #[test]
    fn cargo_run_is_a_build_and_the_arguments_of_the_program() {
        for (line, before_verb, options, program_args) in [
            ("cargo run", "", "", ""),
            ("cargo r --release", "", "--release", ""),
            ("cargo +nightly run -p app -- --port 1 -- x", "+nightly", "-p app", "--port 1 -- x"),
            (
                "/usr/bin/cargo --config a.toml run --bin=web serve -v",
                "--config a.toml",
                "--bin=web",
                "serve -v",
            ),
            ("cargo run -F a,b --target-dir t -q one", "", "-F a,b --target-dir t -q", "one"),
        ] {
            let run = parse(line).expect(line);
            assert_eq!(run.build.before_verb, words(before_verb), "{line}");
            assert_eq!(run.build.options, words(options), "{line}");
            assert_eq!(run.program_args, words(program_args), "{line}");
        }
        for other in ["node app.js", "cargo test", "cargo", "cargo --", "runner run", "cargo -V"] {
            assert_eq!(parse(other), None, "{other}");
        }
        assert!(CargoRun::parse(&words("cargo run --message-format=short")).is_err());
    }

    fn artifact(name: &str, kind: &str, executable: Option<&str>) -> Artifact {
        let target = Target { name: name.to_string(), kind: vec![kind.to_string()] };
        Artifact { executable: executable.map(str::to_string), manifest_path: None, target }
    }

    #[test]
    fn the_program_is_found_in_the_messages() {
        let json = r#"{"reason":"compiler-artifact","package_id":"p","manifest_path":"/p/Cargo.toml","target":{"kind":["bin"],"crate_types":["bin"],"name":"app","src_path":"/p/src/main.rs"},"profile":{},"filenames":["/p/target/debug/app"],"executable":"/p/target/debug/app","fresh":true}"#;
        let Ok(CargoMessage::CompilerArtifact(found)) = serde_json::from_str(json) else {
            panic!("an artifact")
        };
        assert!(found.is_program());
        assert_eq!(found.to_built_program().manifest_dir, "/p");
        assert!(!artifact("build-script-build", "custom-build", None).is_program());
        assert!(!artifact("tests", "test", Some("/t")).is_program());
        let other = r#"{"reason":"build-finished","success":true}"#;
        assert!(matches!(serde_json::from_str(other), Ok(CargoMessage::Other)));
    }

    #[test]
    fn several_programs_are_an_error_that_names_them() {
        // No cargo to ask for a default.
        let build = CargoRun::parse(&words("/no/cargo run")).expect("fine").expect("run").build;
        let (a, b) = (artifact("a", "bin", Some("/a")), artifact("b", "bin", Some("/b")));
        let found = select_program(&build, vec![a.clone()]).expect("one");
        assert_eq!(found.executable, "/a");
        let error = select_program(&build, vec![b, a]).expect_err("two");
        assert!(error.contains("(a, b)"), "{error}");
        assert!(select_program(&build, Vec::new()).expect_err("none").contains("no program"));
    }
}
