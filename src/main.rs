//! The `prefork` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    tokio_prefork::cli::main()
}
