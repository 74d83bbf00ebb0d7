//! An application with a worker of another kind that starts a program and has limits of the kernel.

use std::process::Command;

use tokio_prefork::{Cluster, Result, Worker, WorkerKind};

use super::ProgramArguments;
use super::boot::text_service;

/// `then=STEP` is what the worker does when it has started `sleep` and written its pid to the file `sleep.pid`: `serve`,
/// `exit` or `freeze`. With `limits=1` it has limits of the kernel.
pub(super) fn process_limits(arguments: ProgramArguments) -> Result<()> {
    let step = arguments.value("then").unwrap_or_else(|_| "serve".to_string());
    let mut helper = WorkerKind::new("helper", 1).own_process_group().core_dumps(false);
    if arguments.value("limits").is_ok() {
        helper = helper.open_files(64).max_data_bytes(1 << 30).max_address_space_bytes(1 << 36);
    }
    Cluster::new(arguments.config)
        .kind(helper, move |worker: Worker| {
            let step = step.clone();
            async move {
                let sleep = Command::new("sleep").arg("600").spawn()?;
                std::fs::write("sleep.pid.new", sleep.id().to_string())?;
                // Readers see the whole number.
                std::fs::rename("sleep.pid.new", "sleep.pid")?;
                tokio::task::yield_now().await;
                match step.as_str() {
                    "exit" => std::process::exit(3),
                    "freeze" => loop {
                        std::thread::park();
                    },
                    _ => worker.draining().await,
                }
                Ok(())
            }
        })
        .serve(|worker: Worker| async move { Ok(text_service(move || worker.pid().to_string())) })
}
