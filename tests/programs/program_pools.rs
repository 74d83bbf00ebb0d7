//! A program without a cluster that uses isolated pools. Prints one line for each step.

use std::io::BufRead;
use std::time::Duration;

use tokio_prefork::isolated::{IsolatedPool, IsolatedPoolConfig, IsolatedPools};
use tokio_prefork::{Error, Result};

use super::ProgramArguments;

/// A value whose encoding, decoding and drop are code that may panic.
struct HostileValue(String);

impl serde::Serialize for HostileValue {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        panic_if(self.0 == "encode");
        self.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for HostileValue {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        let value = String::deserialize(deserializer)?;
        panic_if(value == "decode");
        Ok(HostileValue(value))
    }
}

impl Drop for HostileValue {
    fn drop(&mut self) {
        panic_if(self.0 == "drop" && tokio_prefork::is_worker());
    }
}

/// A payload of a panic that panics again when it is dropped.
struct HostilePayload;

impl Drop for HostilePayload {
    fn drop(&mut self) {
        panic_if(true);
    }
}

#[expect(clippy::panic, reason = "a panic is among the ends of a job")]
fn panic_if(panics: bool) {
    if panics {
        panic!("a hostile value");
    }
}

fn return_value(command: HostileValue) -> std::result::Result<HostileValue, String> {
    match command.0.as_str() {
        "pid" => Err(format!("pid {}", std::process::id())),
        "payload" => std::panic::panic_any(HostilePayload),
        value => Ok(HostileValue(value.trim_start_matches("return ").to_string())),
    }
}

/// Reads a command from each line of its input: `square N`, `sleep MS`, `exit N`, `panic TEXT`, `pid`, `primary`, `status`, `stop`,
/// and `value TEXT` for the pool of hostile values.
pub(super) fn program_pools(arguments: ProgramArguments) -> Result<()> {
    if arguments.value("threads").is_ok() {
        std::thread::spawn(std::thread::park);
    }
    let cannot_boot = arguments.value("boot").is_ok();
    let config = IsolatedPoolConfig::new("jobs", 1..=2).nice(0).deadline(Duration::from_secs(20));
    let init = move || if cannot_boot { Err("the model is missing".into()) } else { Ok(0_u64) };
    let jobs = IsolatedPool::new(config, init, perform);
    let values = IsolatedPool::new(
        IsolatedPoolConfig::new("values", 1).nice(0),
        || Ok(()),
        |_, value: HostileValue| return_value(value),
    );
    let pools = IsolatedPools::new().pool(&jobs).pool(&values).start()?;
    println!("started");
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::system("read the commands", e))?;
        match line.as_str() {
            "primary" => println!("primary {}", pools.primary_pid()),
            "status" => println!("{}", serde_json::to_string(&jobs.status()).unwrap_or_default()),
            "stop" => break,
            _ if line.starts_with("value ") => {
                match values.job(HostileValue(line["value ".len()..].to_string())).wait() {
                    Ok(answer) => println!("{}", answer.0),
                    Err(e) => println!("{e}"),
                }
            }
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
