//! The program that `prefork dev` runs if none is given: what the files of the current directory name.

use std::path::Path;

use serde_json::Value;

/// Returns the command for the project in `dir`.
///
/// # Errors
/// The files name none. The text says what to give.
pub(crate) fn default_command(dir: &Path) -> Result<Vec<String>, String> {
    if dir.join("Cargo.toml").is_file() {
        return Ok(vec!["cargo".to_string(), "run".to_string()]);
    }
    let package = dir.join("package.json");
    if package.is_file() {
        let text = std::fs::read_to_string(&package).unwrap_or_default();
        return node_command(&serde_json::from_str(&text).unwrap_or_default());
    }
    Err("prefork dev needs a program: no Cargo.toml and no package.json is here; give one, as in \
         prefork dev -- cargo run, prefork dev -- node app.js, or prefork dev --build 'make' -- ./server"
        .to_string())
}

/// Returns the command of a `package.json`: that of `dev` or `start`, if it is one of node, else its `main`.
fn node_command(package: &Value) -> Result<Vec<String>, String> {
    let scripts = ["dev", "start"].iter().filter_map(|name| package["scripts"][name].as_str());
    let words = scripts.filter_map(shlex::split).find(|words| {
        words.first().is_some_and(|word| word == "node")
            && !words.iter().any(|word| ["&&", "||", ";", "|", "&"].contains(&word.as_str()))
    });
    let main = || Some(vec!["node".to_string(), package["main"].as_str()?.to_string()]);
    words.or_else(main).ok_or_else(|| {
        "prefork dev needs a program: package.json has neither a script start that begins with node, nor main; give the program \
         itself, as in prefork dev -- node server.js (npm would stand between prefork and the program)"
            .to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cargo_project_runs_cargo_and_another_directory_is_an_error_with_examples() {
        let dir = tempfile::tempdir().expect("dir");
        let error = default_command(dir.path()).expect_err("nothing is there");
        assert!(error.contains("prefork dev -- cargo run"), "{error}");
        std::fs::write(dir.path().join("Cargo.toml"), "[package]").expect("file");
        assert_eq!(default_command(dir.path()), Ok(vec!["cargo".to_string(), "run".to_string()]));
    }

    #[test]
    fn a_node_project_runs_its_script_or_its_main_file() {
        let words = |line: &str| line.split(' ').map(str::to_string).collect::<Vec<_>>();
        for (package, expected) in [
            (json!({"scripts": {"start": "node server.js --port 1"}}), "node server.js --port 1"),
            (
                json!({"scripts": {"dev": "vite", "start": "node a.js"}, "main": "b.js"}),
                "node a.js",
            ),
            (json!({"scripts": {"start": "node a.js && node b.js"}, "main": "b.js"}), "node b.js"),
            (json!({"main": "lib/app.js"}), "node lib/app.js"),
        ] {
            assert_eq!(node_command(&package), Ok(words(expected)), "{package}");
        }
        assert!(node_command(&json!({"scripts": {"start": "next start"}})).is_err());
    }
}
