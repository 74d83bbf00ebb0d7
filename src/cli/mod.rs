//! The face of the binary: verbs to functions to exit statuses. The library never imports it.

mod args;
mod bench;
mod check;
mod compare;
mod ctl;
mod demo;
mod health;
mod logger;
mod output_file;
mod pages;
mod panic_log;
mod program;
mod reference;
mod serve;
mod shared;
mod status;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use tokio_prefork::log_output;
use tokio_prefork::text::Printable;
use tokio_prefork::{Result, exit};

/// Runs the `prefork` command.
pub fn main() -> ExitCode {
    let verb = match args::parse(std::env::args_os()) {
        Ok(verb) => verb,
        Err(error) => return help_or_usage(&error),
    };
    let done = match verb {
        args::Verb::Serve(flags) => serve::run(flags),
        args::Verb::Check { flags, json } => check::run(flags, json),
        args::Verb::Program(flags) => program::run(flags),
        args::Verb::Ask(call) => ctl::run(call),
        args::Verb::Health(call) => health::run(call),
        args::Verb::Bench(call) => bench::run(*call),
        args::Verb::Generate(call) => pages::run(call),
        args::Verb::Reference(call) => reference::run(&call),
        args::Verb::Demo(call) => demo::run(call),
        args::Verb::Compare(call) => compare::run(call),
    };
    done.unwrap_or_else(|error| {
        tokio_prefork::report_failed_start(&error);
        complain(&error);
        ExitCode::from(error.exit_status())
    })
}

/// Prints what clap has to say. Only help and the version that were asked for are a success.
fn help_or_usage(error: &clap::Error) -> ExitCode {
    // A reader that has seen enough (`| head`) is no failure.
    if let Err(e) = error.print().and_then(|()| io::stdout().flush())
        && e.kind() != io::ErrorKind::BrokenPipe
        && !error.use_stderr()
    {
        complain(&tokio_prefork::Error::system("write to standard output", e));
        return ExitCode::from(exit::OS);
    }
    ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK })
}

/// One line on stderr, whatever the text.
fn complain(text: &dyn Display) {
    log_output::write_last_line(format!("prefork: {}\n", Printable(text)).as_bytes());
}

/// Prints the answer of a verb.
fn answer(text: &str) -> Result<ExitCode> {
    print(text)?;
    Ok(ExitCode::from(exit::OK))
}

/// Prints to standard output; `false` when its reader has seen enough (`| head`), which is no failure.
fn print(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(tokio_prefork::Error::system("write to standard output", error)),
    }
}
