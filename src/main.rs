//! The `prefork` command.

mod app;
mod cli;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
