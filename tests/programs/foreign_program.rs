//! Programs that a worker of `prefork run` may be, other than a well-behaved server: `test_programs foreign-program MODE`.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use prefork_os::signal::{Signal, register_signal_flag};

use super::foreign_server;

/// How long a program of these does nothing at a time.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs the program of this mode.
pub fn run(mut words: impl Iterator<Item = String>) -> ExitCode {
    let mode = words.next().unwrap_or_default();
    match mode.as_str() {
        // Serves, and has a child in a session of its own that ignores SIGTERM. Both pids are printed.
        "has-descendants" => {
            println!("descendant {}", start_again("ignores-signals"));
            foreign_server::serve(words)
        }
        "ignores-signals" => {
            let _ = nix::unistd::setsid();
            let ignored = [Signal::SIGTERM, Signal::SIGHUP].map(register_signal_flag);
            let _ignored = ignored.map(|flag| flag.expect("signal handler"));
            wait_for_ever()
        }
        // Leaves the work to a process in the background, as daemons do.
        "daemonises" => {
            println!("descendant {}", start_again("ignores-signals"));
            ExitCode::SUCCESS
        }
        "exits" => ExitCode::from(words.next().and_then(|code| code.parse().ok()).unwrap_or(0)),
        "never-ready" => wait_for_ever(),
        // Accepts at once, and says READY=1 when the file `go` exists.
        "ready-late" => {
            foreign_server::accept_in_background();
            println!("accepting {}", std::process::id());
            while !std::path::Path::new("go").exists() {
                std::thread::park_timeout(PAUSE);
            }
            foreign_server::report_ready();
            wait_for_ever()
        }
        // Prints the value of a variable, and serves.
        "prints-variable" => {
            let name = words.next().unwrap_or_default();
            println!("{name}={}", std::env::var(&name).unwrap_or_default());
            eprintln!("to stderr");
            foreign_server::serve(words)
        }
        // Reports its status many times before it serves, and again when it is told to stop.
        "reports-status" => {
            report_status();
            let is_told = register_signal_flag(Signal::SIGTERM).expect("signal handler");
            foreign_server::accept_in_background();
            while !is_told.load(Ordering::Relaxed) {
                std::thread::park_timeout(PAUSE);
            }
            report_status();
            println!("reported {}", std::process::id());
            ExitCode::SUCCESS
        }
        // Opens /dev/stdout by path, as programs with a path for their log do, and serves.
        "opens-stdout" => {
            let stdout = std::fs::OpenOptions::new().write(true).open("/dev/stdout");
            writeln!(stdout.expect("open"), "opened").expect("write");
            foreign_server::serve(words)
        }
        // Serves, and says WATCHDOG=1 until a file `freeze` exists, which it removes.
        "watched" => {
            foreign_server::accept_in_background();
            foreign_server::report_ready();
            while std::fs::remove_file("freeze").is_err() {
                foreign_server::report("WATCHDOG=1");
                std::thread::park_timeout(PAUSE);
            }
            wait_for_ever()
        }
        // Prints for ever, and serves.
        "floods" => {
            std::thread::spawn(flood);
            foreign_server::serve(words)
        }
        _ => ExitCode::from(64),
    }
}

/// Starts this program in another mode, and returns its pid.
fn start_again(mode: &str) -> u32 {
    let program = std::env::current_exe().expect("path");
    let mut command = Command::new(program);
    command.args(["foreign-program", mode]).stdin(Stdio::null());
    command.spawn().expect("a child").id()
}

/// Sends more messages than the queue of the socket holds (`net.unix.max_dgram_qlen`). A full queue blocks the write.
fn report_status() {
    (0..2000).for_each(|step| foreign_server::report(&format!("STATUS=step {step}")));
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park_timeout(PAUSE);
    }
}

fn flood() {
    let block = "0123456789abcdef 0123456789abcdef 0123456789abcdef\n".repeat(100);
    let mut out = std::io::stdout().lock();
    while out.write_all(block.as_bytes()).is_ok() {}
}
