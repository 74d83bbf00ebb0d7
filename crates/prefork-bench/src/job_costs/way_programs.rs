//! The programs that measure: this one, and scripts for the pools of other languages, Node's Piscina and Python's
//! `ProcessPoolExecutor`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use super::{JobWay, MEASURED_WAY_ARGS};
use tokio_prefork::{Error, Result};

/// The scripts by their file names.
const SCRIPTS: [(&str, &str); 3] = [
    ("piscina.js", include_str!("peers/piscina.js")),
    ("piscina_jobs.js", include_str!("peers/piscina_jobs.js")),
    ("process_pool_executor.py", include_str!("peers/process_pool_executor.py")),
];

/// The program that measures one way to run jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WayProgram {
    /// Name of the way in the report, with its version.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Option<(&'static str, PathBuf)>,
}

impl WayProgram {
    /// Returns its command, which lacks the plan as last argument.
    pub(super) fn build_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.clone());
        command
    }
}

/// A peer that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingPeer {
    /// Its name.
    pub peer: String,
    /// Why, and how to install it.
    pub why: String,
}

/// Writes the scripts to a temporary directory, which is removed when it is dropped.
pub(super) fn write_scripts() -> Result<tempfile::TempDir> {
    let fail = |e| Error::system("write the scripts of the peers to a temporary directory", e);
    let directory = tempfile::Builder::new().prefix("prefork-peers-").tempdir().map_err(fail)?;
    for (name, text) in SCRIPTS {
        std::fs::write(directory.path().join(name), text).map_err(fail)?;
    }
    Ok(directory)
}

/// Finds the program of a way. `piscina` is the directory that was given for it.
pub(super) fn find_program(
    way: JobWay,
    piscina: Option<&Path>,
    scripts: &Path,
) -> std::result::Result<WayProgram, MissingPeer> {
    let found = match way {
        JobWay::Piscina => find_piscina(piscina, scripts),
        JobWay::ProcessPoolExecutor => find_process_pool_executor(scripts),
        own => Ok(WayProgram {
            name: own.name().to_string(),
            program: std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()),
            args: MEASURED_WAY_ARGS.into_iter().chain([own.name()]).map(str::to_string).collect(),
            env: None,
        }),
    };
    found.map_err(|why| MissingPeer { peer: way.name().to_string(), why })
}

fn find_piscina(given: Option<&Path>, scripts: &Path) -> std::result::Result<WayProgram, String> {
    let node = first_output_line("node", &["--version"])
        .ok_or("node is not installed: apt-get install nodejs npm, then npm install -g piscina")?;
    let candidates = match given {
        Some(directory) => vec![directory.to_path_buf()],
        None => usual_piscina_directories(),
    };
    let found = candidates.iter().find_map(|directory| find_piscina_below(directory));
    let (modules, version) = found.ok_or_else(|| {
        let place = given.map_or_else(
            || "in no directory that node searches, nor in npm root -g".to_string(),
            |directory| format!("not in {}", directory.display()),
        );
        format!(
            "node is there, the package piscina is {place}: npm install -g piscina, or npm install piscina in \
             any directory and --piscina DIRECTORY"
        )
    })?;
    Ok(WayProgram {
        name: format!("Piscina {version} (node {})", node.trim_start_matches('v')),
        program: PathBuf::from("node"),
        args: vec![scripts.join("piscina.js").display().to_string()],
        env: Some(("NODE_PATH", modules)),
    })
}

/// Directories in which Piscina may be: those that node searches from the current directory, and npm's global one.
fn usual_piscina_directories() -> Vec<PathBuf> {
    let node_path = std::env::var_os("NODE_PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = std::env::split_paths(&node_path).collect();
    let here = std::env::current_dir().unwrap_or_default();
    all.extend(here.ancestors().map(|directory| directory.join("node_modules")));
    all.extend(first_output_line("npm", &["root", "--global"]).map(PathBuf::from));
    all
}

/// Returns the directory for NODE_PATH and the version, if `directory` is the package itself, has it, or has a `node_modules`
/// that has it.
fn find_piscina_below(directory: &Path) -> Option<(PathBuf, String)> {
    let directory = std::path::absolute(directory).ok()?;
    let parent = directory.parent().filter(|_| directory.ends_with("piscina"));
    let modules =
        [Some(directory.join("node_modules")), Some(directory.clone()), parent.map(Into::into)];
    modules.into_iter().flatten().find_map(|modules| {
        let package = std::fs::read_to_string(modules.join("piscina/package.json")).ok()?;
        let package: serde_json::Value = serde_json::from_str(&package).ok()?;
        Some((modules, package["version"].as_str().unwrap_or("of no version").to_string()))
    })
}

fn find_process_pool_executor(scripts: &Path) -> std::result::Result<WayProgram, String> {
    let python = first_output_line("python3", &["--version"])
        .ok_or("python3 is not installed: apt-get install python3")?;
    Ok(WayProgram {
        name: format!("ProcessPoolExecutor ({python})"),
        program: PathBuf::from("python3"),
        args: vec![
            // Writes no bytecode to the temporary directory.
            "-B".to_string(),
            scripts.join("process_pool_executor.py").display().to_string(),
        ],
        env: None,
    })
}

/// Runs a program, and returns the first line that it prints; `None` if it is not installed or does not work.
fn first_output_line(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
    text.lines().next().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piscina_is_found_in_its_own_directory_and_above_it() {
        let home = tempfile::tempdir().expect("directory");
        let package = home.path().join("node_modules/piscina");
        assert_eq!(find_piscina_below(home.path()), None);
        std::fs::create_dir_all(&package).expect("directory");
        std::fs::write(package.join("package.json"), r#"{"version": "5.3.2"}"#).expect("file");
        let modules = home.path().join("node_modules");
        for directory in [home.path(), &modules, &package] {
            let found = find_piscina_below(directory);
            assert_eq!(found, Some((modules.clone(), "5.3.2".to_string())), "{directory:?}");
        }
        assert_eq!(find_piscina_below(&package.join("dist")), None);
    }

    #[test]
    fn scripts_are_written_and_removed() {
        let scripts = write_scripts().expect("scripts");
        let path = scripts.path().to_path_buf();
        assert_eq!(std::fs::read_dir(&path).expect("directory").count(), SCRIPTS.len());
        drop(scripts);
        assert!(!path.exists());
    }
}
