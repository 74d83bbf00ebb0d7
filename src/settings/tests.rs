//! Tests of the example file and of the checks of the command's own keys.

use tokio_prefork::cli::{AppKeys, EffectiveValue, ValueSource, all_keys};

use super::*;

fn resolve(flags: &[&str], toml: &str) -> tokio_prefork::Result<Settings> {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), toml).expect("write");
    let path = file.path().to_str().expect("UTF-8");
    let argv = ["prefork", "serve", "--config", path].into_iter().chain(flags.iter().copied());
    let flags = match crate::args::parse_args(argv).expect("arguments") {
        crate::args::Verb::Serve(flags) => flags,
        other => panic!("{other:?}"),
    };
    flags.sources(PROGRAM).with_environment([]).resolve()
}

fn resolve_error(flags: &[&str], toml: &str) -> String {
    resolve(flags, toml).expect_err("error").to_string()
}

/// Checks that `text` sets each key to its default, with a comment above.
fn check_example<A: AppKeys>(text: &str, effective_values: &[EffectiveValue]) {
    let keys = all_keys::<A>();
    assert_eq!(keys.len(), effective_values.len());
    for (key, effective) in keys.iter().zip(effective_values) {
        assert_eq!((effective.key, &effective.value), (key.name, &key.default));
        let is_set = matches!(effective.source, ValueSource::File { .. });
        let is_commented_out =
            text.lines().any(|line| line.starts_with(&format!("#{} = ", key.name)));
        let has_default = !effective.value.is_empty();
        assert_eq!((is_set, is_commented_out), (has_default, !has_default), "{}", key.name);
    }
    let mut previous_line = "";
    for line in text.lines() {
        if line.contains(" = ") && !line.starts_with("# ") {
            assert!(previous_line.starts_with("# "), "no comment above {line}");
        }
        previous_line = line;
    }
}

#[test]
fn example_file_has_every_key_with_its_default() {
    let text = include_str!("../../systemd/prefork.toml");
    let settings = resolve(&[], text).expect("the example is valid");
    check_example::<AppSettings>(text, settings.effective_values());
}

#[test]
fn example_file_of_run_has_every_key_with_its_default() {
    let text = include_str!("../../systemd/program.toml");
    let with_program = format!("{text}\nprogram = 'true'\n");
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), &with_program).expect("write");
    let path = file.path().to_str().expect("UTF-8");
    let flags = match crate::args::parse_args(["prefork", "run", "-c", path]).expect("arguments") {
        crate::args::Verb::Run(flags) => flags,
        other => panic!("{other:?}"),
    };
    let settings = flags.sources(PROGRAM).with_environment([]).resolve().expect("valid");
    let mut effective = settings.effective_values().to_vec();
    let program = effective.iter_mut().find(|one| one.key == "program").expect("a key");
    (program.value, program.source) = (String::new(), ValueSource::Default);
    check_example::<ProgramSettings>(text, &effective);
}

#[test]
fn the_command_checks_its_own_keys_and_needs_a_worker() {
    let error = resolve_error(&[], "max-body-size = \"2g\"");
    assert!(
        error.ends_with(":1: max-body-size = \"2g\" is out of range: give 0 to 1GiB"),
        "{error}"
    );
    assert_eq!(
        resolve_error(&["--workers", "0"], ""),
        "--workers = \"0\" is out of range: give auto or 1 to 1024"
    );
    let error = resolve_error(&[], "[app]\nx = 1");
    assert!(error.contains(":1: unknown key \"app\""), "{error}");
    assert!(resolve_error(&["--fallback", "index.html"], "").contains("root is not set"));
    assert!(resolve_error(&["--log", "loud"], "").contains("would log nothing"));
}
