//! A program without a cluster that uses isolated pools. Prints one line for each step.

use std::io::BufRead;
use std::time::Duration;

use tokio_prefork::isolated::{IsolatedPool, IsolatedPoolConfig, IsolatedPools};
use tokio_prefork::{Error, Result};

use super::ProgramArguments;

/// Reads a command from each line of its input: `square N`, `sleep MS`, `exit N`, `panic TEXT`, `pid`, `primary`, `status`, `stop`.
pub(super) fn program_pools(arguments: ProgramArguments) -> Result<()> {
    if arguments.value("threads").is_ok() {
        std::thread::spawn(std::thread::park);
    }
    let cannot_boot = arguments.value("boot").is_ok();
    let config = IsolatedPoolConfig::new("jobs", 1..=2).nice(0).deadline(Duration::from_secs(20));
    let init = move || if cannot_boot { Err("the model is missing".into()) } else { Ok(0_u64) };
    let jobs = IsolatedPool::new(config, init, perform);
    let pools = IsolatedPools::new().pool(&jobs).start()?;
    println!("started");
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::system("read the commands", e))?;
        match line.as_str() {
            "primary" => println!("primary {}", pools.primary_pid()),
            "status" => println!("{}", serde_json::to_string(&jobs.status()).unwrap_or_default()),
            "stop" => break,
            _ => match jobs.job(line).wait() {
                Ok(answer) => println!("{answer}"),
                Err(e) => println!("{e}"),
            },
        }
    }
    pools.stop()?;
    println!("stopped");
    match jobs.job("pid".to_string()).wait() {
        Ok(answer) => println!("{answer}"),
        Err(e) => println!("has begun {}", e.has_begun()),
    }
    Ok(())
}

#[expect(clippy::panic, reason = "a panic is among the ends of a job")]
fn perform(jobs: &mut u64, command: String) -> std::result::Result<String, String> {
    *jobs += 1;
    let (verb, argument) = command.split_once(' ').unwrap_or((&command, ""));
    let number = argument.parse::<u64>().unwrap_or(0);
    match verb {
        "square" => Ok(format!("{} is job {jobs}", number * number)),
        "sleep" => {
            println!("begun");
            std::thread::park_timeout(Duration::from_millis(number));
            Ok("slept".to_string())
        }
        "exit" => std::process::exit(number as i32),
        "panic" => panic!("{argument}"),
        "pid" => Ok(format!("pid {}", std::process::id())),
        _ => Err(format!("no such job: {verb}")),
    }
}
